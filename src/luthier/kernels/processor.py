"""What the processor multiplies matrices with."""

import platform

import torch

X86 = ("x86_64", "amd64", "i386", "i686")


def multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bfloat16 that torch uses.

    On x86, torch's own query is also true where AVX-512 has none for bfloat16: products then run, in fp32 behind
    conversions, many times slower than in fp32.
    """
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine().lower() not in X86:
        return True
    return has_bf16_vectors() or has_matrix_units()


def has_bf16_vectors() -> bool:
    """Whether this CPU multiplies bfloat16 in vector registers (AVX512_BF16)."""
    return torch.cpu._is_avx512_bf16_supported()


def has_matrix_units() -> bool:
    """Whether this CPU multiplies bfloat16 tiles in units of their own (AMX)."""
    return torch.cpu._is_amx_tile_supported()
