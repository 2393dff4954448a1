"""Where the tests of Triton kernels run.

On a machine with a GPU the kernels are compiled and run there. Elsewhere Triton's interpreter runs them on CPU tensors:
tests/conftest.py asks for it before anything imports Triton. Without Triton, tests that import this are skipped.
"""

import os
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
assert GPU or os.environ.get("TRITON_INTERPRET") == "1", "tests/conftest.py was not loaded"

# The dtypes whose results are rounded as a GPU rounds: the interpreter of Triton 3.9 cuts bfloat16 off instead.
ROUNDED = (torch.float32, torch.bfloat16, torch.float16) if GPU else (torch.float32, torch.float16)


def result_dtype(dtype: torch.dtype) -> torch.dtype:
    """What results of inputs in `dtype` are written in: the same where they are rounded, else unrounded in fp32."""
    return dtype if dtype in ROUNDED else torch.float32


def on_device(case: dict[str, Any]) -> dict[str, Any]:
    """A case of an op with its tensors where the kernels run."""
    return {name: value.to(DEVICE) if isinstance(value, Tensor) else value for name, value in case.items()}
