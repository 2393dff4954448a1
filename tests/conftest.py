"""Settings for all tests."""

import os

# Several processes share the cores: each computes with one thread, and so do the processes that tests start.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

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
