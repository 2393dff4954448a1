"""Keys and values of many sequences, in blocks that are handed out, shared and given back.

A block holds a few tokens of every layer. Sequences with a common beginning (answers to one prompt, prompts with
one preamble) name the same blocks; nothing is moved when a sequence ends and another takes its place. What was read may
be remembered: its blocks then stay, while nobody else needs them, for sequences that begin alike.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from luthier.models.decoding.beginnings import Beginnings

BLOCK = 32
"""Tokens of a block: long enough to be read in one sweep, short enough that its empty end is little memory."""


def blocks_for(num_tokens: int) -> int:
    """How many blocks hold so many tokens."""
    return -(-num_tokens // BLOCK)


@dataclass
class Stored:
    """A sequence in the cache: its blocks in order, and how many tokens have been read into them."""

    blocks: list[int] = field(default_factory=list)
    length: int = 0


class BlockCache:
    """Room for `num_blocks` blocks. Memory of blocks that were never used is only promised, not taken.

    Args:
        num_layers, num_heads, head_size: of keys and values.
        num_blocks: most blocks in use at one time.
    """

    def __init__(
        self,
        num_layers: int,
        num_heads: int,
        head_size: int,
        num_blocks: int,
        dtype: torch.dtype,
        device: torch.device,
    ):
        size = (num_layers, 2, num_blocks, num_heads, BLOCK, head_size)
        self._store = torch.empty(size, dtype=dtype, device=device)
        self._free = list(range(num_blocks))[::-1]
        self._users = [0] * num_blocks
        self._beginnings = Beginnings(BLOCK)
        self._kept: OrderedDict[int, None] = OrderedDict()
        """Blocks that nobody uses but whose tokens are known; those at the front are the first to be given away."""

    @property
    def num_free(self) -> int:
        """Blocks that nobody uses."""
        return len(self._free) + len(self._kept)

    def keys(self, layer: int) -> Tensor:
        """[blocks, heads, BLOCK, size]."""
        return self._store[layer, 0]

    def values(self, layer: int) -> Tensor:
        """[blocks, heads, BLOCK, size]."""
        return self._store[layer, 1]

    def known(self, owner: str, tokens: Sequence[int]) -> int:
        """How many of these tokens `begin` would find; at least the last one has to be read."""
        return self._beginnings.find(owner, tokens[:-1])[1]

    def begin(self, owner: str, tokens: Sequence[int]) -> Stored:
        """A sequence that holds what is known of the beginning of these tokens, by the model `owner`."""
        blocks, num = self._beginnings.find(owner, tokens[:-1])
        for block in blocks:
            self._use(block)
        whole = num // BLOCK
        stored = Stored(blocks[:whole], whole * BLOCK)
        for source in blocks[whole:]:  # one that others fill otherwise, if any: its first tokens are copied
            if self.num_free:
                self.grow(stored, num)
                self._store[:, :, stored.blocks[whole]] = self._store[:, :, source]
                stored.length = num
            self._leave(source)
        return stored

    def remember(self, owner: str, stored: Stored, tokens: Sequence[int]) -> None:
        """Makes the sequence, which has read these tokens, known to those that begin alike."""
        self._beginnings.add(owner, tokens[: stored.length], stored.blocks)

    def grow(self, stored: Stored, num_tokens: int) -> None:
        """Gives the sequence blocks for `num_tokens` tokens in all."""
        while len(stored.blocks) < blocks_for(num_tokens):
            block = self._free.pop() if self._free else self._kept.popitem(last=False)[0]
            self._beginnings.forget(block)
            self._users[block] = 1
            stored.blocks.append(block)

    def fork(self, stored: Stored, num: int) -> list[Stored]:
        """`num` sequences that begin as this one does: whole blocks are shared, the one begun is copied."""
        whole = stored.length // BLOCK
        forks = []
        for _ in range(num):
            for block in stored.blocks[:whole]:
                self._use(block)
            forks.append(Stored(stored.blocks[:whole], stored.length))
            self.grow(forks[-1], stored.length)
        if forks and stored.length % BLOCK:
            ends = torch.tensor([fork.blocks[whole] for fork in forks], device=self._store.device)
            self._store[:, :, ends] = self._store[:, :, stored.blocks[whole]][:, :, None]
        return forks

    def release(self, stored: Stored) -> None:
        """Gives a sequence's blocks back; those that others share stay."""
        # The end is the first to go: without it the beginning is of use.
        for block in reversed(stored.blocks):
            self._leave(block)
        stored.blocks = []

    def _use(self, block: int) -> None:
        self._users[block] += 1
        self._kept.pop(block, None)

    def _leave(self, block: int) -> None:
        self._users[block] -= 1
        if self._users[block]:
            return
        if block in self._beginnings:
            self._kept[block] = None
        else:
            self._free.append(block)

    def write(self, layer: int, place_T: tuple[Tensor, Tensor], key_TGD: Tensor, value_TGD: Tensor) -> None:
        """Stores tokens' keys and values in these blocks and places."""
        for cache, new_TGD in ((self.keys(layer), key_TGD), (self.values(layer), value_TGD)):
            cache[place_T[0], :, place_T[1]] = new_TGD.to(cache.dtype)

    def places(self, stored: Stored, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Block and place in it of the tokens from `start` to `stop`, two tensors of indices."""
        token_T = torch.arange(start, stop, device=self._store.device)
        blocks = torch.tensor(stored.blocks, device=self._store.device)
        return blocks[token_T // BLOCK], token_T % BLOCK

    def read(self, layer: int, stored: Stored, num_tokens: int) -> tuple[Tensor, Tensor]:
        """Copies of the first tokens' keys and values, [heads, num_tokens, size] each."""
        blocks = torch.tensor(stored.blocks[: blocks_for(num_tokens)], device=self._store.device)
        pair = self._store[layer][:, blocks].transpose(1, 2).flatten(2, 3)[:, :, :num_tokens]
        return pair[0], pair[1]


def table(rows: Sequence[Stored], device: torch.device) -> Tensor:
    """The blocks of each row, [rows, most blocks] in int32; rows with fewer are filled up with block 0."""
    width = max((len(row.blocks) for row in rows), default=0)
    filled = [row.blocks + [0] * (width - len(row.blocks)) for row in rows]
    return torch.tensor(filled, dtype=torch.int32, device=device)
