"""Noise on what a model embeds while it is trained: NEFTune (arXiv:2310.05914).

    x_td  ←  x_td + alpha / sqrt(L · D) · u_td,   u uniform in [-1, 1)

L is the length of the document that token t stands in; where a row has several (a prompt with two answers), that of
its longest one, so that a prompt gets the same noise whether its answers share it or not.

Each u is a hash of seed, step, row, place in the document and d. So a resumed run draws what the uninterrupted one
did, and neither packing nor micro-batches nor ranks change it. A row that comes again in another step gets new noise.

Shape suffixes: T tokens of the stream, P those of a document in it, S segments, Q sequences, D hidden size.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from luthier.data.batch import Batch

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1


@dataclass
class EmbeddingNoise:
    """What is added to embedded tokens in training.

    Args:
        alpha: its strength; the paper has 5, 10 and 15.
        seed: of the run.
        step: the optimizer step under way; the trainer sets it.
    """

    alpha: float
    seed: int
    step: int = 0

    def __call__(self, batch: Batch, size: int) -> Tensor:
        """The noise of every token of the stream, [T, D] in fp32."""
        row_T, length_T = _documents(batch)
        start = _scrambled(_scrambled(self.seed & _MASK) ^ self.step)
        key_T = _scrambled_tensor(row_T * _signed(_GOLDEN) + _signed(start))
        key_T = _scrambled_tensor(key_T + batch.positions_T * _signed(_GOLDEN))
        scale_T = self.alpha / (length_T.clamp(min=1).float() * size).sqrt()
        return _uniform(key_T, size).mul_(scale_T[:, None])

    @contextmanager
    def added(self, embedding: nn.Module, batch: Batch, index_P: Tensor | None = None) -> Iterator[None]:
        """While it holds, the module's output [1, P, D] for these tokens of the stream (all of them) is noisy."""

        def add(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            noise_TD = self(batch, output.shape[-1])
            noise_PD = noise_TD if index_P is None else noise_TD[index_P]
            return output + noise_PD.to(output.dtype)

        hook = embedding.register_forward_hook(add)
        try:
            yield
        finally:
            hook.remove()


def _documents(batch: Batch) -> tuple[Tensor, Tensor]:
    """For each token the number of its row, and the length of the row's longest document, [T] each.

    Reads no number from the device.
    """
    starts, parents, device = batch.starts_S1.tolist(), batch.parent_S.tolist(), batch.tokens_T.device
    sequence, length, depth = [-1] * len(parents), [], [0] * len(parents)
    for segment, parent in enumerate(parents):
        before = depth[parent] if parent >= 0 else 0
        depth[segment] = before + starts[segment + 1] - starts[segment]
    for number, path in enumerate(batch.paths()):
        length.append(depth[path[-1]])
        for segment in path:
            sequence[segment] = number if sequence[segment] < 0 else sequence[segment]
    row_Q, length_Q = batch.columns["row"].long(), torch.tensor(length, device=device)
    longest_Q = torch.where(row_Q[:, None] == row_Q[None], length_Q[None], 0).amax(1)
    sequence_T = torch.tensor(sequence).repeat_interleave(batch.starts_S1.cpu().diff()).to(device)
    return row_Q[sequence_T], longest_Q[sequence_T]


def _uniform(key_T: Tensor, size: int) -> Tensor:
    """Numbers in [-1, 1), [T, D] in fp32: a hash of 32 bits of each key and of d."""
    low_T = ((key_T & 0xFFFFFFFF) - (1 << 31)).to(torch.int32)
    place_D = torch.arange(size, dtype=torch.int32, device=key_T.device) * _signed(0x9E3779B1, 32)
    x = low_T[:, None] ^ place_D[None]
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = x.bitwise_xor_((x >> shift) & ((1 << (32 - shift)) - 1)).mul_(_signed(factor, 32))
    x = x.bitwise_xor_((x >> 16) & 0xFFFF)
    return ((x >> 8) & 0xFFFFFF).float().mul_(2.0**-23).sub_(1.0)


def _scrambled(x: int) -> int:
    """64 bits of which each depends on each of x: the finaliser of SplitMix64."""
    x = (x + _GOLDEN) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def _scrambled_tensor(x: Tensor) -> Tensor:
    """The same of int64, whose products wrap around."""
    x = x + _signed(_GOLDEN)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ ((x >> shift) & ((1 << (64 - shift)) - 1))) * _signed(factor)
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def _signed(value: int, bits: int = 64) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value
