"""The GPU's skinny products against their definition, over one tile and over many."""

import pytest
import torch

from kernel_parts import DTYPES, assert_accurate, intact, strided
from luthier.kernels import low_rank
from luthier.kernels.triton import low_rank as device
from triton_parts import on_device


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(len(low_rank.cases())))
def test_both_products_are_those_of_the_reference(index: int, dtype: torch.dtype) -> None:
    case = on_device(low_rank.cases(dtype)[index])
    truth = low_rank.reference(*(tensor.double() for tensor in case.values()))
    plain = case["grad_TM"] @ case["b_MR"], case["grad_TM"].T @ case["low_TR"]
    out = strided(torch.zeros_like(case["low_TR"]))
    low_grad, b_grad = device.backward(*(strided(tensor) for tensor in case.values()), out=out)
    assert low_grad is out and intact(out) and b_grad.dtype == torch.float32
    assert_accurate(low_grad, truth[0], plain[0])
    assert_accurate(b_grad, truth[1], plain[1])


def test_tokens_are_summed_in_the_same_order_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "PROGRAMS", 2)  # each program then walks several tiles
    case = on_device(low_rank.cases(torch.float32)[-1])
    truth = low_rank.reference(*(tensor.double() for tensor in case.values()))
    first, again = (device.backward(**case, out=torch.empty_like(case["low_TR"])) for _ in range(2))
    plain = low_rank.reference(**case)  # the op itself, in fp32
    for ours, same, exact, rounded in zip(first, again, truth, plain, strict=True):
        assert torch.equal(ours, same)
        assert_accurate(ours, exact, rounded)
