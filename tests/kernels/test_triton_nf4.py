"""The GPU decodes 4-bit weights to the same bits as the definition, into rows of a wider buffer."""

import pytest
import torch

from kernel_parts import intact, strided
from luthier.kernels import nf4
from luthier.kernels.quant import fp4, mxfp4
from luthier.kernels.triton import nf4 as device
from triton_parts import DEVICE, ROUNDED


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("index", range(len(nf4.cases())))
def test_decoded_weights_are_those_of_the_reference(index: int, dtype: torch.dtype) -> None:
    case = nf4.cases()[index]
    packed = nf4.quantize(case["weight_MK"], double=case["double"]).to(DEVICE)
    out = strided(torch.zeros(packed.shape, dtype=dtype, device=DEVICE))
    assert device.dequantize(packed, out) is out and intact(out)
    assert torch.equal(out, nf4.reference(packed).to(dtype))


@pytest.mark.parametrize("values", [fp4.VALUES, mxfp4.VALUES])
@pytest.mark.parametrize("block", [32, 128])
def test_other_tables_and_blocks(block: int, values: tuple[float, ...]) -> None:
    weight = torch.randn(6, 192, generator=torch.Generator().manual_seed(0))
    packed = nf4.quantize(weight, double=True, block=block, values=values).to(DEVICE)
    out = strided(torch.zeros(packed.shape, device=DEVICE))
    assert device.dequantize(packed, out) is out and intact(out)
    assert torch.equal(out, nf4.reference(packed))
