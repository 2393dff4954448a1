"""Attention over blocks: the definition's numbers at any lengths and by any rule, nothing from unused places."""

from typing import Any

import pytest
import torch

from luthier.kernels import decode_attention, native

needs_compiler = pytest.mark.skipif(native.library() is None, reason=native.reason())


def stored(case: dict[str, Any]) -> dict[str, Any]:
    """The case after the new token was written, as the definition wants it."""
    case = dict(case)
    keys, values = case["keys_NGSD"].clone(), case["values_NGSD"].clone()
    for row, length in enumerate(case["length_B"].tolist()):
        block, place = divmod(length - 1, keys.shape[2])
        keys[case["table_BN"][row, block], :, place] = case["key_BGD"][row]
        values[case["table_BN"][row, block], :, place] = case["value_BGD"][row]
    del case["key_BGD"], case["value_BGD"]
    return {**case, "keys_NGSD": keys, "values_NGSD": values}


def cast(case: dict[str, Any], dtype: torch.dtype, cache: torch.dtype) -> dict[str, Any]:
    return {
        name: value.to(cache if name.startswith(("keys", "values")) else dtype)
        if isinstance(value, torch.Tensor) and value.is_floating_point()
        else value
        for name, value in case.items()
    }


def computed(case: dict[str, Any]) -> torch.Tensor:
    out = torch.full(case["query_BHD"].shape, torch.nan, dtype=case["query_BHD"].dtype)
    return decode_attention.forward(**case, out=out)


def spoiled(case: dict[str, Any]) -> dict[str, Any]:
    """nan wherever no sequence has a token: memory that nobody has written."""
    keys, values = (
        torch.full_like(case["keys_NGSD"], torch.nan),
        torch.full_like(case["values_NGSD"], torch.nan),
    )
    size = keys.shape[2]
    for row, length in enumerate(case["length_B"].tolist()):
        for token in range(length):
            block = int(case["table_BN"][row, token // size])
            keys[block, :, token % size] = case["keys_NGSD"][block, :, token % size]
            values[block, :, token % size] = case["values_NGSD"][block, :, token % size]
    return {**case, "keys_NGSD": keys, "values_NGSD": values}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("way", [pytest.param("native", marks=needs_compiler), "plain"])
def test_it_gives_the_definitions_numbers(way: str, dtype: torch.dtype) -> None:
    for case in decode_attention.cases():
        expected = decode_attention.reference(**stored(case))
        given = cast(spoiled(case), dtype, dtype)
        if way == "plain":
            with native.disabled():
                found = computed(given)
        else:
            found = computed(given)
        rounding = 1e-12 if dtype == torch.float64 else 2e-6
        torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=rounding)


@needs_compiler
def test_a_bf16_cache_is_read_exactly() -> None:
    """Rounded are only keys and values, as they are stored."""
    for case in decode_attention.cases():
        narrow = cast(case, torch.float32, torch.bfloat16)
        exact = cast(narrow, torch.float64, torch.float64)
        for name in ("key_BGD", "value_BGD"):
            exact[name] = narrow[name].bfloat16().double()
        expected = decode_attention.reference(**stored(exact))
        torch.testing.assert_close(computed(narrow).double(), expected, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("way", [pytest.param("native", marks=needs_compiler), "plain"])
def test_the_new_token_is_stored_and_nothing_else_is_changed(way: str) -> None:
    case = cast(decode_attention.cases()[0], torch.float32, torch.float32)
    expected = stored(case)
    if way == "plain":
        with native.disabled():
            computed(case)
    else:
        computed(case)
    assert torch.equal(case["keys_NGSD"], expected["keys_NGSD"])
    assert torch.equal(case["values_NGSD"], expected["values_NGSD"])


@needs_compiler
def test_a_row_is_the_same_bits_in_any_batch() -> None:
    for case in decode_attention.cases():
        case = cast(case, torch.float32, torch.float32)
        together = computed(case)
        for row in range(len(together)):
            alone = {
                name: value[row : row + 1] if name.endswith(("_BHD", "_BGD", "_BN", "_B")) else value
                for name, value in case.items()
            }
            assert torch.equal(computed(alone)[0], together[row])


def test_a_length_that_is_told_is_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU asking would make the host wait in every layer of every token."""
    case = cast(decode_attention.cases()[0], torch.float32, torch.float32)
    expected = computed(dict(case))
    longest = int(case["length_B"].max())
    monkeypatch.setattr(torch.Tensor, "__int__", lambda tensor: pytest.fail("read from the device"))
    out = torch.empty_like(case["query_BHD"])
    with native.disabled():
        found = decode_attention.forward(**case, out=out, longest=longest)
    torch.testing.assert_close(found, expected)
