"""What the tests of kernels share: awkward memory, and the two rules of accuracy."""

from collections.abc import Callable

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def strided(x: Tensor) -> Tensor:
    """The same values as columns of a wider buffer that is NaN elsewhere: reading beside them shows in the result."""
    width = x.shape[1:].numel()
    buffer = torch.full((len(x), width + 5), torch.nan, dtype=x.dtype, device=x.device)
    columns = buffer[:, 2 : 2 + width]
    columns.copy_(x.reshape(len(x), width))
    return columns.unflatten(1, x.shape[1:]) if x.dim() > 2 else columns


def intact(view: Tensor) -> bool:
    """Whether what `strided` laid around the view is still NaN, and the view is not."""
    buffer = view._base
    assert buffer is not None
    return bool(buffer.isnan().sum() == buffer.numel() - view.numel()) and not view.isnan().any()


def assert_accurate(ours: Tensor, truth: Tensor, plain: Tensor) -> None:
    """At most twice the error of plain torch in the same dtype, and 1e-6 of the truth's size where that is exact."""
    assert ours.isfinite().all()
    error, size = (ours.double() - truth).norm(), truth.norm()
    assert error <= 2 * (plain.double() - truth).norm() + 1e-6 * size, (error / size).item()


def gradients(function: Callable[..., Tensor], inputs: list[Tensor], grad: Tensor) -> list[Tensor]:
    """What autograd makes of plain torch: the output, then one gradient an input."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*leaves)
    return [output.detach(), *torch.autograd.grad(output, leaves, grad)]
