"""NF4 weights decoded on a GPU, straight into a (strided) buffer: 0.5 bytes in, one element out, one pass.

A program decodes whole blocks of 64 weights (or as many as share a maximum): the two codes of a byte are looked up in
the 16-entry table (one cache line, so a look-up costs a warp one access), multiplied by the block's absolute maximum in
fp32, rounded once.

The multiplication and the addition of the doubly quantised maximum must not be fused into one rounding: the values
would differ in the last bit from those the weights were made with. Hence `enable_fp_fusion=False`.

Shape suffixes: M outputs, K inputs.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from luthier.kernels.triton.launch import ELEMENTS, check, jit, on_device, tl, triton

if TYPE_CHECKING:
    from luthier.kernels.nf4 import Packed


@jit
def _dequantize_kernel(
    codes_ptr,
    table_ptr,
    absmax_ptr,
    nested_table_ptr,
    nested_absmax_ptr,
    offset_ptr,
    out_ptr,
    num_bytes,
    num_elements,
    width,
    out_stride,
    NESTED: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCKS: tl.constexpr,
    SIZE: tl.constexpr,
):
    block = (tl.program_id(0) * BLOCKS + tl.arange(0, BLOCKS)).to(tl.int64)
    byte = block[:, None] * (SIZE // 2) + tl.arange(0, SIZE // 2)[None, :]
    codes = tl.load(codes_ptr + byte, byte < num_bytes, 0).to(tl.int32)
    inside = block * SIZE < num_elements
    if nested_table_ptr is not None:
        code = tl.load(absmax_ptr + block, inside, 0).to(tl.int32)
        scale = tl.load(nested_table_ptr + code) * tl.load(nested_absmax_ptr + block // NESTED, inside, 0.0)
        absmax = scale + tl.load(offset_ptr)
    else:
        absmax = tl.load(absmax_ptr + block, inside, 0.0)
    high = tl.load(table_ptr + (codes >> 4)) * absmax[:, None]
    low = tl.load(table_ptr + (codes & 15)) * absmax[:, None]
    values = tl.interleave(high, low).to(out_ptr.dtype.element_ty)
    inner = tl.arange(0, SIZE)[None, :]
    if ALIGNED:  # a block lies in one row: one division a block, neighbours stay neighbours for the compiler
        per_row = width // SIZE
        start = (block // per_row) * out_stride + (block % per_row) * SIZE
        tl.store(out_ptr + start[:, None] + inner, values, inside[:, None] & (inner < SIZE))
    else:
        element = block[:, None] * SIZE + inner
        place = (element // width) * out_stride + element % width
        tl.store(out_ptr + place, values, element < num_elements)


def dequantize(packed: "Packed", out: Tensor) -> Tensor:
    """The weights of `packed`, [M, K], written into `out` (any row stride)."""
    check(out)
    assert tuple(out.shape) == packed.shape
    num_outputs, width = packed.shape
    num_elements = num_outputs * width
    nested = packed.nested
    size = packed.block
    blocks = max(1, ELEMENTS // size)
    if num_elements:
        with on_device(out):
            _dequantize_kernel[(triton.cdiv(triton.cdiv(num_elements, size), blocks),)](
                packed.codes,
                packed.table,
                packed.absmax,
                nested.table if nested else None,
                nested.absmax if nested else None,
                nested.offset if nested else None,
                out,
                packed.codes.numel(),
                num_elements,
                width,
                out.stride(0),
                NESTED=nested.size if nested else 1,
                ALIGNED=width % size == 0,
                BLOCKS=blocks,
                SIZE=size,
                num_warps=8,  # 4 bytes a thread become 8 elements: both ends move in wide accesses
                enable_fp_fusion=False,
            )
    return out
