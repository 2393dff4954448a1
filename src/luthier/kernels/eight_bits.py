"""Products with a frozen weight in 8 bits that stay in 8 bits: forward, and the gradient of the input.

A stored weight is code[m, k] · s[m], whole bytes or 8-bit floats (E4M3). The other side is rounded to the same kind of
numbers with a scale for each token, found anew each time (int8: arXiv:2208.07339; fp8: arXiv:2209.05433):

    y[t, m]  = (Σₖ x̂[t, k] · code[m, k]) · u[t] · s[m]      x̂ = round(x / u),     u[t] = max |x[t]| / largest code
    dx[t, k] = (Σₘ ĝ[t, m] · code[m, k]) · v[t]             ĝ = round(s·dy / v),  v[t] = max |s·dy[t]| / largest code

The weight's scale belongs to the sum over m, so it is put into the gradient before that is rounded. Sums are exact for
whole bytes (32 bits) and in fp32 for floats. On a GPU they are single instructions of its matrix units
(`torch._int_mm`, `torch._scaled_mm`), which has not been measured; on a CPU this is a definition, not a speed-up.

Shape suffixes: T tokens, K inputs, M outputs.
"""

import torch
from torch import Tensor

from luthier.kernels.quant.base import Stored

_int_mm, _scaled_mm = torch._int_mm, torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
TINY = torch.finfo(torch.float32).tiny


def why_not(stored: Stored) -> str | None:
    """Why products with this weight cannot stay in 8 bits, in a few words; None if they can."""
    codes, scale = stored.parts.get("codes"), stored.parts.get("scale")
    if codes is None or scale is None or codes.dtype not in LARGEST or scale.shape != codes.shape[:1]:
        return "its weights are not single bytes with a scale for each row"
    return None


def forward(x_TK: Tensor, stored: Stored, out_TM: Tensor) -> Tensor:
    """Writes x·Wᵀ into `out_TM` (any row stride) and returns it."""
    codes_MK, scale_M = stored.parts["codes"], stored.parts["scale"]
    x_codes_TK, scale_T1 = by_token(x_TK.float(), codes_MK.dtype)
    if _native_floats(codes_MK):
        made = _scaled_mm(x_codes_TK, codes_MK.T, scale_T1, scale_M[None], out_dtype=out_TM.dtype)
        return out_TM.copy_(made)
    return out_TM.copy_(_sums(x_codes_TK, codes_MK.T).mul_(scale_T1).mul_(scale_M))


def input_gradient(grad_TM: Tensor, stored: Stored) -> Tensor:
    """dy·W, [T, K], in the dtype of dy."""
    codes_MK, scale_M = stored.parts["codes"], stored.parts["scale"]
    codes_TM, scale_T1 = by_token(grad_TM.float() * scale_M, codes_MK.dtype)
    if _native_floats(codes_MK):
        columns = codes_MK.T.contiguous().T  # the unit reads both sides along the sum
        ones = torch.ones(1, codes_MK.shape[1], device=codes_MK.device)
        return _scaled_mm(codes_TM, columns, scale_T1, ones, out_dtype=grad_TM.dtype)
    return _sums(codes_TM, codes_MK).mul_(scale_T1).to(grad_TM.dtype)


def multiplied(left: tuple[Tensor, Tensor], right: tuple[Tensor, Tensor], dtype: torch.dtype) -> Tensor:
    """x·wᵀ of 8-bit floats, [T, M] in `dtype`.

    Args:
        left: codes [T, K] and the scale of each row, [T, 1].
        right: codes [M, K] and the scale of each row, [M, 1].
    """
    (x_TK, u_T1), (w_MK, s_M1) = left, right
    if _native_floats(w_MK):
        return _scaled_mm(x_TK, w_MK.contiguous().T, u_T1, s_M1.T.contiguous(), out_dtype=dtype)
    return _sums(x_TK, w_MK.T).mul_(u_T1).mul_(s_M1.T).to(dtype)


def by_token(values_TK: Tensor, kind: torch.dtype) -> tuple[Tensor, Tensor]:
    """Codes of this kind, and the scale of each token, [T, 1]."""
    scale_T1 = values_TK.abs().amax(1, keepdim=True).div_(LARGEST[kind]).clamp_(min=TINY)
    scaled = values_TK / scale_T1
    return (scaled.round_() if kind is torch.int8 else scaled.clamp_(-448, 448)).to(kind), scale_T1


def _sums(codes_TK: Tensor, codes_KM: Tensor) -> Tensor:
    """The sums of products of codes, in fp32."""
    if codes_TK.dtype is not torch.int8:
        return codes_TK.float() @ codes_KM.float()
    if codes_TK.is_cuda:  # whose units take 17 rows or more, and multiples of 8 columns
        if codes_KM.shape[0] % 8 or codes_KM.shape[1] % 8:
            return (codes_TK.double() @ codes_KM.double()).float()
        short = max(0, 32 - len(codes_TK))
        padded = torch.cat([codes_TK, codes_TK.new_zeros(short, codes_TK.shape[1])]) if short else codes_TK
        return _int_mm(padded, codes_KM)[: len(codes_TK)].float()
    return _int_mm(codes_TK, codes_KM).float() if codes_TK.numel() else codes_TK.float() @ codes_KM.float()


def _native_floats(codes_MK: Tensor) -> bool:
    """Whether the GPU multiplies 8-bit floats of this shape itself."""
    if codes_MK.dtype is torch.int8 or not codes_MK.is_cuda:
        return False
    fits = codes_MK.shape[0] % 16 == 0 and codes_MK.shape[1] % 16 == 0
    return fits and torch.cuda.get_device_capability(codes_MK.device) >= (9, 0)
