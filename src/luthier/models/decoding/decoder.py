"""Reads tokens into a cache of blocks and gives the logits that follow: prompts at once, or a token for each row.

Shape suffixes: B rows, T tokens of the stream, K hidden size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from luthier.kernels import native
from luthier.kernels.decoded_head import block_rows, parts_of
from luthier.kernels.logprob import LogitShape
from luthier.kernels.quant.base import Stored as Weight
from luthier.kernels.workspace import Workspace
from luthier.models.decoding.attend import Attention, Reading, Stepping
from luthier.models.decoding.bound import BoundLinear, BoundModel
from luthier.models.decoding.cache import BlockCache, Stored, table
from luthier.models.decoding.layer import linear, run_layer

STREAM_TOKENS = 4096
"""Most tokens that are read at once: what lies between layers then stays a few tens of megabytes."""


class BlockDecoder:
    """Decodes with a bound model.

    Args:
        bound: the model's tensors.
        shape: what the model does to its logits.
        num_blocks: room in the cache.
        cache: one that there is, of a model whose keys and values have the same sizes, in the place of an own one.
    """

    def __init__(
        self, bound: BoundModel, shape: LogitShape, num_blocks: int = 0, cache: BlockCache | None = None
    ):
        first = bound.layers[0].attention
        weight = first.output.weight_NK
        self._bound, self._shape, self._device = bound, shape, weight.device
        # On the CPU activations stay fp32 between the weights: exact, and faster than rounding them each time.
        wide = weight.device.type == "cpu" and weight.dtype in native.SUFFIX and native.library() is not None
        self._dtype = torch.float32 if wide else weight.dtype
        self._workspace = Workspace()
        size = len(bound.layers), first.num_key_heads, first.head_size, num_blocks
        self.cache = BlockCache(*size, weight.dtype, weight.device) if cache is None else cache
        self._rows: list[Stored] = []
        self._table_BN = self._length_B = torch.empty(0)

    def step(self, token_B: Tensor, rows: Sequence[Stored]) -> Tensor:
        """Reads one token for each row, whose blocks must have room for it.

        Returns the logits that follow, [B, V], valid until the next call.
        """
        if len(rows) != len(self._rows) or any(a is not b for a, b in zip(rows, self._rows, strict=True)):
            self._rows = list(rows)
            self._table_BN = table(rows, self._device)
            lengths = [row.length for row in rows]
            self._length_B = torch.tensor(lengths, dtype=torch.int32, device=self._device)
        position_B = self._length_B.long()
        self._length_B += 1
        for row in rows:
            row.length += 1
        longest = max((row.length for row in rows), default=0)
        attend = Stepping(self.cache, self._table_BN, self._length_B, longest)
        return self._logits(self._stream(token_B, position_B, attend))

    def read(self, stored: Sequence[Stored], tokens: Sequence[Sequence[int]]) -> Tensor:
        """Reads tokens on into each sequence, which must have the blocks. Logits after the last ones: [B, V]."""
        self._rows = []  # lengths change
        logits = []
        for some in _portions(tokens):
            group, news = list(stored[some]), [list(new) for new in tokens[some]]
            while len(news[0]) > STREAM_TOKENS:  # then it is alone
                self._read(group, [news[0][:STREAM_TOKENS]])
                news = [news[0][STREAM_TOKENS:]]
            logits.append(self._logits(self._read(group, news)).clone())
        return torch.cat(logits)

    def _read(self, stored: Sequence[Stored], tokens: Sequence[list[int]]) -> Tensor:
        """Hidden states of each sequence's last token."""
        spans = [(row, row.length, row.length + len(new)) for row, new in zip(stored, tokens, strict=True)]
        token_T = torch.tensor([token for new in tokens for token in new], device=self._device)
        position_T = torch.tensor([p for _, a, b in spans for p in range(a, b)], device=self._device)
        hidden_TK = self._stream(token_T, position_T, Reading(self.cache, spans))
        for row, _, stop in spans:
            row.length = stop
        last = torch.tensor([len(new) for new in tokens], device=self._device).cumsum(0) - 1
        return hidden_TK[last]

    def _stream(self, token_T: Tensor, position_T: Tensor, attend: Attention) -> Tensor:
        bound = self._bound
        hidden_TK = bound.embedding(token_T).to(self._dtype)
        if bound.multiplier != 1:
            hidden_TK *= bound.multiplier
        tables = {kind: self._tables(hidden_TK, position_T, kind) for kind in bound.kinds}
        for number, layer in enumerate(bound.layers):
            attend_here = partial(attend, number, layer.attention.rule)
            run_layer(hidden_TK, layer, tables[layer.attention.kind], attend_here, self._workspace)
        return hidden_TK

    def _tables(self, hidden_TK: Tensor, position_T: Tensor, kind: str | None) -> tuple[Tensor, Tensor]:
        arguments = (hidden_TK, position_T[None]) + (() if kind is None else (kind,))
        cos, sin = self._bound.rotary(*arguments)
        return cos[0].contiguous(), sin[0].contiguous()

    def _logits(self, hidden_BK: Tensor) -> Tensor:
        head = self._bound.head
        normed_BK = self._bound.norm(hidden_BK).to(self._dtype)
        logits_BV = self._workspace.take("logits", len(hidden_BK), head.num_out, like=normed_BK)
        for part, rows in _some_rows(head):
            linear(normed_BK, rows, logits_BV[:, part], self._workspace)
        if self._shape.scale != 1:
            logits_BV *= self._shape.scale
        if (cap := self._shape.softcap) is not None:
            logits_BV.div_(cap).tanh_().mul_(cap)
        return logits_BV


def _some_rows(head: BoundLinear) -> Iterator[tuple[slice, BoundLinear]]:
    """The head; of one that is stored in few bits, as many rows at once as may be decoded, and their place."""
    whole = head.weight_NK
    if not isinstance(whole, Weight):
        yield slice(0, head.num_out), head
        return
    for part, weight in parts_of(whole, block_rows(whole.shape, whole.dtype)):
        yield part, BoundLinear(weight, None if head.bias_N is None else head.bias_N[part])


def _portions(tokens: Sequence[Sequence[int]]) -> Iterator[slice]:
    """Neighbours that together are short enough to be read at once; a longer one is alone."""
    start = total = 0
    for place, new in enumerate(tokens):
        if place > start and total + len(new) > STREAM_TOKENS:
            yield slice(start, place)
            start, total = place, 0
        total += len(new)
    yield slice(start, len(tokens))
