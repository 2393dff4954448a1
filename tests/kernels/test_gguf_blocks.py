"""Blocks of GGUF files decode to the bits that the package `gguf` makes of them."""

import pytest
import torch

from luthier.kernels.packed.gguf import DECODERS, Gguf
from luthier.kernels.quant.base import Stored

gguf = pytest.importorskip("gguf")
np = pytest.importorskip("numpy")
quants = pytest.importorskip("gguf.quants")
ROWS = 6
KINDS = sorted(
    kind.name for kind in quants._type_traits if kind.name not in ("F32", "F16", "BF16", "F64", "Q1_0")
)


def random_blocks(kind: str) -> tuple[torch.Tensor, int, int]:
    """Rows of blocks with random codes; the scales, fp16 numbers in bytes, are small and finite."""
    size, num_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    draw = torch.Generator().manual_seed(len(kind))
    blocks = torch.randint(0, 256, (ROWS, 2 * num_bytes), generator=draw, dtype=torch.int64).to(torch.uint8)
    pairs = blocks.view(ROWS, -1, 2)
    high = pairs[..., 1]
    high[(high & 0x7C) == 0x7C] &= 0x3B  # neither infinite nor NaN, wherever a scale may lie
    if num_bytes % 2:
        odd = blocks.view(ROWS, 2, num_bytes)
        odd[..., 0] = odd[..., 0] % 16 + 120  # of MXFP4: powers of two near 1
    return blocks, size, num_bytes


@pytest.mark.parametrize("kind", KINDS)
def test_blocks_decode_to_the_bits_of_the_package(kind: str) -> None:
    blocks, size, num_bytes = random_blocks(kind)
    expected = torch.from_numpy(
        np.array(gguf.dequantize(blocks.numpy(), gguf.GGMLQuantizationType[kind]), np.float32)
    )
    stored = Stored(Gguf(kind, size, num_bytes), {"blocks": blocks}, (ROWS, 2 * size), torch.float32)
    assert torch.equal(stored.weight().nan_to_num(), expected.nan_to_num())
    assert float(expected.nan_to_num().abs().max()) > 0
    assert stored.scheme.bits() == 8 * blocks.numel() / expected.numel()


def test_the_usual_types_need_no_package() -> None:
    usual = {
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "Q2_K",
        "Q3_K",
        "Q4_K",
        "Q5_K",
        "Q6_K",
        "IQ4_NL",
        "IQ4_XS",
    }
    assert usual <= set(DECODERS) <= set(KINDS)
