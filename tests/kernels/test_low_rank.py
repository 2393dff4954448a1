"""The two skinny products of a LoRA layer's backward pass in plain torch."""

import pytest
import torch

from kernel_parts import DTYPES, assert_accurate, intact, strided
from luthier.kernels import low_rank


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(len(low_rank.cases())))
def test_both_products_are_those_of_the_reference(index: int, dtype: torch.dtype) -> None:
    case = low_rank.cases(dtype)[index]
    truth = low_rank.reference(*(tensor.double() for tensor in case.values()))
    plain = case["grad_TM"] @ case["b_MR"], case["grad_TM"].T @ case["low_TR"]
    out = strided(torch.zeros_like(case["low_TR"]))
    low_grad, b_grad = low_rank.backward(*(strided(tensor) for tensor in case.values()), out=out)
    assert low_grad is out and intact(out) and b_grad.dtype == torch.float32
    assert_accurate(low_grad, truth[0], plain[0])
    assert_accurate(b_grad, truth[1], plain[1])


def test_float64_and_a_made_output() -> None:
    case = low_rank.cases()[2]
    low_grad, b_grad = low_rank.backward(**case)
    assert low_grad.dtype == b_grad.dtype == torch.float64
    torch.testing.assert_close((low_grad, b_grad), low_rank.reference(**case))
