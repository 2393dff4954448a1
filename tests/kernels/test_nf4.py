"""4-bit weights: the nearest of 16 values, decoded to the bit as bitsandbytes decodes them."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernel_parts import DTYPES, intact, strided
from luthier.errors import ModelError
from luthier.kernels import nf4


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(len(nf4.cases())))
def test_every_way_of_decoding_gives_the_same_bits(index: int, dtype: torch.dtype) -> None:
    case = nf4.cases()[index]
    packed = nf4.quantize(case["weight_MK"].to(dtype), double=case["double"])
    expected = nf4.reference(packed).to(dtype)
    assert packed.codes.shape == (packed.shape[0], packed.shape[1] // 2)
    out, made = strided(torch.zeros_like(expected)), nf4.dequantize(packed)
    assert nf4.dequantize(packed, out) is out and intact(out)
    assert torch.equal(out, expected) and torch.equal(made, expected) and made.dtype == dtype


def test_chunks_of_rows_join(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = nf4.quantize(torch.randn(7, 128), double=True)
    monkeypatch.setattr(nf4, "CHUNK", 300)  # two rows at a time, the last alone
    assert torch.equal(nf4.dequantize(packed), nf4.reference(packed))


@settings(max_examples=30)
@given(
    seed=st.integers(0, 10_000),
    scale=st.floats(1e-6, 1e6),
    outputs=st.integers(1, 5),
    half=st.integers(1, 70),
)
def test_each_weight_becomes_its_nearest_value(seed: int, scale: float, outputs: int, half: int) -> None:
    weight = torch.randn(outputs, 2 * half, generator=torch.Generator().manual_seed(seed)) * scale
    packed = nf4.quantize(weight)
    blocks = torch.nn.functional.pad(weight.reshape(-1), (0, -weight.numel() % 64)).view(-1, 64)
    absmax = blocks.abs().amax(1, keepdim=True)
    distance = (blocks[..., None] - absmax[..., None] * packed.table).abs().amin(-1)
    found = (weight - nf4.reference(packed)).abs().reshape(-1)
    torch.testing.assert_close(
        found, distance.reshape(-1)[: len(found)], rtol=1e-4, atol=1e-6 * float(absmax.max())
    )
    # what is on the grid stays: quantising again changes nothing
    again = nf4.quantize(nf4.reference(packed))
    assert torch.equal(again.codes, packed.codes) and torch.equal(again.absmax, packed.absmax)


def test_memory_is_what_the_format_promises() -> None:
    weight = torch.randn(512, 1024)
    bits = {
        double: 8 * nf4.quantize(weight, double=double).num_bytes() / weight.numel()
        for double in (False, True)
    }
    assert bits[False] == pytest.approx(4.5, abs=0.01)
    assert bits[True] == pytest.approx(4 + 8 / 64 + 32 / (64 * 256), abs=0.02)
    errors = [
        (nf4.reference(nf4.quantize(weight, double=double)) - weight).norm() / weight.norm()
        for double in bits
    ]
    assert all(0.08 < error < 0.1 for error in errors)  # about 9 % on normal weights


def test_what_cannot_be_stored_or_written_says_why() -> None:
    with pytest.raises(ModelError, match=r"A weight with 3 inputs cannot be stored in NF4.*must be even"):
        nf4.quantize(torch.zeros(2, 3))
    packed = nf4.quantize(torch.zeros(2, 64))
    with pytest.raises(ValueError, match=r"shape \(2, 64\) cannot be decoded into \(2, 63\)"):
        nf4.dequantize(packed, torch.zeros(2, 63))


def _theirs(weight: Tensor, double: bool) -> tuple[nf4.Packed, Tensor, Any]:
    """A weight that bitsandbytes stored, as ours; what it decodes; its state."""
    functional = pytest.importorskip("bitsandbytes.functional")
    codes, state = functional.quantize_4bit(
        weight, blocksize=64, compress_statistics=double, quant_type="nf4"
    )
    decoded = functional.dequantize_4bit(codes, state)
    nested = nf4.Nested(state.state2.code, state.state2.absmax, state.offset) if double else None
    num_outputs, width = weight.shape
    codes = codes.view(num_outputs, width // 2)
    return (
        nf4.Packed(codes, state.absmax, state.code, (num_outputs, width), weight.dtype, nested),
        decoded,
        state,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("double", [False, True])
def test_what_bitsandbytes_stored_is_decoded_to_the_bit(double: bool, dtype: torch.dtype) -> None:
    weight = (torch.randn(96, 256, generator=torch.Generator().manual_seed(1)) * 0.03).to(dtype)
    packed, decoded, _ = _theirs(weight, double)
    assert torch.equal(nf4.dequantize(packed), decoded)


@pytest.mark.parametrize("double", [False, True])
def test_bitsandbytes_stores_what_we_store(double: bool) -> None:
    weight = torch.randn(96, 256, generator=torch.Generator().manual_seed(2)) * 0.03
    theirs, _, state = _theirs(weight, double)
    ours = nf4.quantize(weight, double=double)
    assert torch.equal(ours.table, theirs.table)
    assert (
        ours.codes != theirs.codes
    ).float().mean() < 1e-3  # a quotient between two values may round either way
    if not double:
        assert torch.equal(ours.absmax, theirs.absmax)
        return
    assert ours.nested is not None and theirs.nested is not None
    assert torch.equal(ours.nested.table, theirs.nested.table) and ours.nested.size == state.state2.blocksize
    torch.testing.assert_close(nf4.absmax(ours), nf4.absmax(theirs), rtol=0.02, atol=1e-4)
