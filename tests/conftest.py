"""Settings for all tests."""

import os
from collections.abc import Iterator

# Several processes share the cores: each computes with one thread, and so do the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

# Where there is no GPU, Triton's interpreter runs its kernels. It must be told before anything imports Triton, and
# transformers does.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Shared machines are slow at times, which is no fault. In CI the same inputs are tried each time, so that a change
# is judged by what it changed; elsewhere they are drawn anew.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


@pytest.fixture(scope="session", autouse=True)
def auto_is_float32() -> Iterator[None]:
    """`dtype: auto` means fp32 on every CPU: tests compare numbers more closely than bf16 allows, and are to say the
    same on processors that multiply it."""
    from luthier.models import device

    real = device.computes_bf16
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(device, "computes_bf16", lambda where: where.type == "cuda" and real(where))
        yield
