"""Codes of 1 to 8 bits end to end: code i is bits [i·b, (i+1)·b) of a row of bytes, lowest bit first.

So do GPTQ, compressed-tensors and most others count, whatever the words that they write it in: a little-endian word is
its bytes.

Shape suffixes: M rows, K codes of a row.
"""

import torch
from torch import Tensor


def joined(codes_MK: Tensor, num_bits: int) -> Tensor:
    """The codes as bytes [M, K·b / 8]. K·b must be a whole number of bytes, 8 codes to b bytes."""
    if num_bits == 8:
        return codes_MK.to(torch.uint8)
    if num_bits == 4:
        return codes_MK[:, 0::2] | codes_MK[:, 1::2] << 4
    wide = codes_MK.unflatten(1, (-1, 8)).to(torch.int64)
    places = num_bits * torch.arange(8, device=wide.device)
    words = (wide << places).sum(-1)
    shifts = 8 * torch.arange(num_bits, device=wide.device)
    return (words[..., None] >> shifts & 255).to(torch.uint8).flatten(1)


def apart(bytes_MB: Tensor, num_bits: int) -> Tensor:
    """The codes of whole groups of 8 again, uint8 [M, K]."""
    if num_bits == 8:
        return bytes_MB
    if num_bits == 4:
        return torch.stack((bytes_MB & 15, bytes_MB >> 4), -1).flatten(1)
    wide = bytes_MB.unflatten(1, (-1, num_bits)).to(torch.int32 if num_bits < 4 else torch.int64)
    shifts = 8 * torch.arange(num_bits, device=wide.device, dtype=wide.dtype)
    words = (wide << shifts).sum(-1, keepdim=True, dtype=wide.dtype)
    places = num_bits * torch.arange(8, device=wide.device, dtype=wide.dtype)
    return (words >> places & 2**num_bits - 1).to(torch.uint8).flatten(1)


def as_bytes(words_MW: Tensor) -> Tensor:
    """Words of any integer type, row by row, as the bytes that they are in memory."""
    return words_MW.contiguous().view(torch.uint8)
