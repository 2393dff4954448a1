"""The GPU's rotary embedding against its definition; its inverse against the transpose."""

import pytest
import torch

from kernel_parts import DTYPES, assert_accurate, gradients, intact, strided
from luthier.kernels import rotary
from luthier.kernels.triton import rotary as device
from triton_parts import on_device, result_dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(len(rotary.cases())))
def test_both_ways_are_those_of_the_reference(index: int, dtype: torch.dtype) -> None:
    case = on_device(rotary.cases(dtype)[index])
    x, tables = case["x_THD"], (case["cos_TP"], case["sin_TP"])
    grad = torch.randn_like(x)
    wide = [table.double() for table in tables]
    truth = gradients(lambda x: rotary.reference(x, *wide), [x.double()], grad.double())
    made = result_dtype(dtype)
    same = [table.to(made) for table in tables]
    other = gradients(lambda x: rotary.reference(x, *same), [x.to(made)], grad.to(made))
    out, back = (strided(torch.zeros_like(x, dtype=made)) for _ in range(2))
    strided_tables = [strided(table) for table in tables]
    assert device.rotate(strided(x), *strided_tables, out=out) is out and intact(out)
    assert device.rotate(strided(grad), *strided_tables, inverse=True, out=back) is back and intact(back)
    for ours, exact, rounded in zip((out, back), truth, other, strict=True):
        assert_accurate(ours, exact, rounded)
    torch.testing.assert_close(device.rotate(x, *tables), out.to(dtype))
    in_place = strided(x)
    torch.testing.assert_close(device.rotate(in_place, *tables, out=in_place), out.to(dtype))
    assert intact(in_place)


@pytest.mark.parametrize("inverse", [False, True])
@pytest.mark.parametrize(("query_heads", "key_heads"), [(9, 3), (1, 1), (16, 1), (2, 11)])
def test_queries_and_keys_turn_in_one_launch(query_heads: int, key_heads: int, inverse: bool) -> None:
    case = on_device(rotary.cases(torch.float32)[4])
    cos, sin = case["cos_TP"], case["sin_TP"]
    rows = torch.randn(len(cos), query_heads + key_heads, cos.shape[1] + 3, device=cos.device)
    qk = strided(rows)
    device.rotate_both(qk[:, :query_heads], qk[:, query_heads:], cos, sin, inverse=inverse)
    torch.testing.assert_close(qk, device.rotate(rows, cos, sin, inverse=inverse))
    assert intact(qk)
