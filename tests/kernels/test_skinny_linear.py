"""The linear layer for few rows: the definition's numbers, in every dtype, and the same bits in any batch."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from luthier.kernels import native, skinny_linear

needs_compiler = pytest.mark.skipif(native.library() is None, reason=native.reason())


def computed(case: dict[str, Any]) -> torch.Tensor:
    given = dict(case)
    add_to, x_MK, weight_NK = given.pop("add_to"), given.pop("x_MK"), given.pop("weight_NK")
    out = torch.full((len(x_MK), len(weight_NK)), torch.nan, dtype=x_MK.dtype)
    if add_to is not None:
        out = add_to.clone()
    bias_N = given.pop("bias_N")
    return skinny_linear.forward(x_MK, weight_NK, bias_N, out=out, add=add_to is not None, **given)


def ways() -> Iterator[Any]:
    yield pytest.param(native.library, id="native", marks=needs_compiler)
    yield pytest.param(None, id="plain")


@pytest.mark.parametrize("way", list(ways()))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_gives_the_definitions_numbers(way: object, dtype: torch.dtype) -> None:
    for case, exact in zip(skinny_linear.cases(dtype), skinny_linear.cases(), strict=True):
        expected = skinny_linear.reference(**exact)
        if way is None:
            with native.disabled():
                found = computed(case)
        else:
            found = computed(case)
        rounding = 1e-12 if dtype == torch.float64 else 3e-6
        torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=rounding * 10)


@needs_compiler
@pytest.mark.parametrize("narrow", ["weight_NK", "b_NR"])
def test_bf16_weights_are_read_exactly(narrow: str) -> None:
    """Only the weights are rounded beforehand; products and sums are fp32."""
    for case, exact in zip(skinny_linear.cases(torch.float32), skinny_linear.cases(), strict=True):
        many = narrow == "weight_NK" and len(case["x_MK"]) > skinny_linear.most_rows(torch.bfloat16)
        if case[narrow] is None or many:  # many rows are torch's, see below
            continue
        case[narrow] = case[narrow].bfloat16()
        exact[narrow] = case[narrow].double()
        torch.testing.assert_close(
            computed(case).double(), skinny_linear.reference(**exact), rtol=3e-6, atol=3e-5
        )


@needs_compiler
def test_bf16_weights_with_many_rows() -> None:
    """More rows than the C++ side takes: torch's product, in bf16 where the processor has it."""
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 40, generator=random).bfloat16()
    for rows in (skinny_linear.most_rows(torch.bfloat16) + 1, skinny_linear.MAX_ROWS + 1):
        x = torch.randn(rows, 40, generator=random)
        found = skinny_linear.forward(x, weight, out=torch.empty(len(x), 24))
        exact = x.double() @ weight.double().T
        plain = torch.nn.functional.linear(x.bfloat16(), weight).double()
        assert (found.double() - exact).norm() <= 2 * (plain - exact).norm()


@needs_compiler
def test_a_row_is_the_same_bits_in_any_batch() -> None:
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(32, 580, generator=random), torch.randn(50, 580, generator=random)
    together = skinny_linear.forward(x, weight, out=torch.empty(32, 50))
    for start, stop in ((0, 1), (3, 5), (7, 20), *((2, 2 + rows) for rows in range(1, 14))):
        alone = skinny_linear.forward(x[start:stop], weight, out=torch.empty(stop - start, 50))
        assert torch.equal(alone, together[start:stop])


@needs_compiler
def test_slices_of_wider_buffers() -> None:
    """Weights that lie in a training buffer, inputs and outputs that are columns of others: nothing else is touched."""
    random = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, 70, generator=random), torch.randn(30, 90, generator=random)
    out = torch.full((5, 50), 7.0)
    skinny_linear.forward(x[:, 3:63], weight[5:25, 8:68], out=out[:, 10:30])
    torch.testing.assert_close(out[:, 10:30], x[:, 3:63] @ weight[5:25, 8:68].T)
    assert bool((out[:, :10] == 7).all() and (out[:, 30:] == 7).all())


@needs_compiler
def test_what_overflows_stays_visible() -> None:
    x = torch.full((2, 40), 1e30)
    out = skinny_linear.forward(x, torch.full((3, 40), 1e30), out=torch.empty(2, 3))
    assert bool(out.isinf().all())
    x[0, 39] = torch.nan
    out = skinny_linear.forward(x, torch.ones(3, 40), out=out)
    assert bool(out[0].isnan().all() and out[1].isfinite().all())
