"""Which blocks of a cache hold which beginnings of texts, so that a text that begins alike need not be read anew.

A tree: a block is known by its tokens and by the block before it, and the first ones by their owner, a model. So two
texts meet in a block only if all their tokens up to its end are equal: tokens are compared, not hashes of them. Blocks
that are not full are known too, and a block that parts from a text in its midst still serves up to there.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import count

Tokens = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Node:
    """A block with its tokens; `number` is never used again, so none is mistaken for the one before in its block."""

    parent: Hashable
    tokens: Tokens
    block: int
    number: int


@dataclass
class _Children:
    """What may follow after one beginning."""

    nodes: dict[Tokens, _Node] = field(default_factory=dict)
    ordered: list[Tokens] = field(default_factory=list)

    def nearest(self, tokens: Tokens) -> tuple[_Node | None, int]:
        """The node that begins most like these tokens, and how many of them it has."""
        # In order, what shares most with a text stands next to its place.
        place = bisect_left(self.ordered, tokens)
        near = [(shared(one, tokens), one) for one in self.ordered[max(0, place - 1) : place + 1]]
        num, found = max(near, default=(0, ()))
        return (self.nodes[found], num) if num else (None, 0)


class Beginnings:
    """The tree. `size` is how many tokens a full block has."""

    def __init__(self, size: int):
        self._size = size
        self._after: dict[Hashable, _Children] = defaultdict(_Children)
        self._node_of: dict[int, _Node] = {}
        self._numbers = count()

    def __contains__(self, block: int) -> bool:
        """Whether the block is known for what it holds."""
        return block in self._node_of

    def find(self, owner: str, tokens: Sequence[int]) -> tuple[list[int], int]:
        """The blocks that hold the longest known beginning of these tokens, and how many tokens that has.

        Of the last block it may be only the first few.
        """
        blocks: list[int] = []
        num, parent = 0, owner
        while num < len(tokens) and parent in self._after:
            node, fitting = self._after[parent].nearest(tuple(tokens[num : num + self._size]))
            if node is None:
                break
            blocks.append(node.block)
            num, parent = num + fitting, node.number
            if fitting < self._size:
                break
        return blocks, num

    def add(self, owner: str, tokens: Sequence[int], blocks: Sequence[int]) -> None:
        """Makes known that these blocks hold these tokens. What is known already keeps the block that it has."""
        parent: Hashable = owner
        for place, block in enumerate(blocks):
            part = tuple(tokens[place * self._size : (place + 1) * self._size])
            if not part:
                return
            node, fitting = self._after[parent].nearest(part)
            if node is None or fitting < len(part):
                node = self._insert(parent, part, block)
            parent = node.number

    def forget(self, block: int) -> None:
        """The block will hold something else."""
        node = self._node_of.pop(block, None)
        if node is None:
            return
        children = self._after[node.parent]
        del children.nodes[node.tokens]
        del children.ordered[bisect_left(children.ordered, node.tokens)]
        if not children.nodes:
            del self._after[node.parent]

    def _insert(self, parent: Hashable, tokens: Tokens, block: int) -> _Node:
        self.forget(block)  # when it was not yet as full
        node = _Node(parent, tokens, block, next(self._numbers))
        children = self._after[parent]  # forgetting may have emptied it
        self._node_of[block] = children.nodes[tokens] = node
        insort(children.ordered, tokens)
        return node


def shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
