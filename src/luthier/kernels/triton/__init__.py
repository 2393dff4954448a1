"""The GPU side of the ops: Triton kernels behind the same signatures as the ops' own files.

An op's file imports its twin here, and only for tensors the kernels serve:

    if triton.serves(x, out):
        from luthier.kernels.triton import rms_norm as device

Everything else (float64, a machine without Triton, which has wheels for Linux only) stays plain torch.
With TRITON_INTERPRET=1 set before Triton is first imported, the same kernels run on CPU tensors, slowly: that is how
they are tested where there is no GPU.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # read and written; arithmetic is fp32 throughout


def serves(*tensors: Tensor | None) -> bool:
    """Whether the kernels can run on these: on a GPU, in a dtype they compute in, Triton installed."""
    for tensor in tensors:  # runs several times a layer and step
        if tensor is not None and not (tensor.is_cuda and tensor.dtype in DTYPES):
            return False
    return available()


@cache
def available() -> bool:
    """Whether the package `triton` is installed. One look-up a process."""
    return find_spec("triton") is not None
