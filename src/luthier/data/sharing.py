"""Documents that begin alike, computed once.

Rows of a pack often begin with the same tokens: the system prompt of a template, an instruction, a list of tools.
A token sees only what stands before it in its document, so whatever a model makes of such a beginning is the same
in each of them: it can be one segment that the rest of each document continues. Loss and gradients are those of
the separate documents; only work and memory are saved.

    [sys a][sys b][tool c]          ->   [sys] [a] [b] [tool c]        a and b continue sys

Common beginnings are nested: rows that share a system prompt may share their tools as well. The root segments of a
batch, sorted by their tokens, are a tree of common beginnings; each of its edges that is long enough becomes a
segment.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.data.batch import Batch

MIN_SHARED = 16
"""Tokens below which a common beginning stays as it is: each segment costs attention some bookkeeping."""
MIN_GAIN = 0.02
"""Share of the tokens that must be saved."""


@dataclass
class _Shared:
    """A common beginning: tokens `first` to `last` of the document of root `owner`; `parent` is another one or -1."""

    owner: int
    first: int
    last: int
    parent: int


@dataclass
class _Tree:
    """What the roots of a batch have in common."""

    shared: list[_Shared] = field(default_factory=list)
    leaf: dict[int, tuple[int, int]] = field(default_factory=dict)
    """For each root: the shared segment that it continues, -1 for none, and its first token beyond it."""


def share_prefixes(batch: Batch) -> Batch:
    """The same rows with common beginnings laid out once; the batch itself where that saves too little."""
    starts, parents = batch.starts_S1.tolist(), batch.parent_S.tolist()
    roots = [segment for segment, parent in enumerate(parents) if parent < 0]
    ids = batch.tokens_T.numpy()
    documents = {root: ids[starts[root] : starts[root + 1]] for root in roots}
    tree = _common_beginnings(documents)
    lengths = {root: first for root, (_, first) in tree.leaf.items()}
    saved = sum(lengths.values()) - sum(shared.last - shared.first for shared in tree.shared)
    return (
        batch if saved < MIN_GAIN * len(ids) or not tree.shared else _laid_out(batch, tree, starts, parents)
    )


def num_logical_tokens(batch: Batch) -> int:
    """Tokens that the rows would have if nothing were shared: those of every path from a root to a leaf."""
    starts = batch.starts_S1.tolist()
    num_all = sum(starts[s + 1] - starts[s] for path in batch.paths() for s in path)
    return num_all - batch.num_padding


def _common_beginnings(documents: dict[int, NDArray[np.int64]]) -> _Tree:
    """The tree of beginnings that at least two documents share. Each document keeps a token of its own."""
    # big-endian bytes sort as the numbers do, so documents with a common beginning end up side by side
    order = sorted(documents, key=lambda root: documents[root].astype(">i8").tobytes())
    common = [_common(documents[a], documents[b]) for a, b in pairwise(order)]
    tree = _Tree(leaf=dict.fromkeys(order, (-1, 0)))
    _grow(tree, order, common, 0, -1)
    return tree


def _common(a: NDArray[np.int64], b: NDArray[np.int64]) -> int:
    """How many first tokens two documents share, at most all but one of either."""
    most = min(len(a), len(b)) - 1
    differing = np.flatnonzero(a[:most] != b[:most])
    return int(differing[0]) if len(differing) else max(0, most)


def _grow(tree: _Tree, order: Sequence[int], common: Sequence[int], depth: int, parent: int) -> None:
    """Adds what the documents of `order` share beyond their first `depth` tokens, and so on within each group."""
    for group, inner in _groups(order, common, depth + MIN_SHARED):
        number, last = len(tree.shared), min(inner)
        tree.shared.append(_Shared(group[0], depth, last, parent))
        for root in group:
            tree.leaf[root] = number, last
        _grow(tree, group, inner, last, number)


def _groups(
    order: Sequence[int], common: Sequence[int], least: int
) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Runs of at least two neighbours that share `least` tokens or more, and what neighbours in them share."""
    first = 0
    for last in range(len(order)):
        if last == len(order) - 1 or common[last] < least:
            if last > first:
                yield order[first : last + 1], common[first:last]
            first = last + 1


def _laid_out(batch: Batch, tree: _Tree, starts: list[int], parents: list[int]) -> Batch:
    """The batch with shared segments in front and, behind them, what is left of each segment, in order.

    Leaves keep their order, and so do sequences.
    """
    pieces = [range(starts[s.owner] + s.first, starts[s.owner] + s.last) for s in tree.shared]
    new_parents = [shared.parent for shared in tree.shared]
    for segment, parent in enumerate(parents):
        above, first = tree.leaf.get(segment, (parent + len(tree.shared), 0))
        pieces.append(range(starts[segment] + first, starts[segment + 1]))
        new_parents.append(above)
    kept = torch.cat([torch.arange(piece.start, piece.stop) for piece in pieces])
    sizes = torch.tensor([0, *(len(piece) for piece in pieces)])
    return replace(
        batch,
        tokens_T=batch.tokens_T[kept],
        positions_T=batch.positions_T[kept],
        starts_S1=sizes.cumsum(0),
        parent_S=torch.tensor(new_parents),
        source_N=_moved(kept, tree, starts)[batch.source_N],
    )


def _moved(kept: torch.Tensor, tree: _Tree, starts: list[int]) -> torch.Tensor:
    """For each token of the old stream its place in the new one; for a shared token that of its one copy."""
    place_T = torch.empty(starts[-1], dtype=torch.int64)
    place_T[kept] = torch.arange(len(kept))
    for root, (number, _) in tree.leaf.items():
        while number >= 0:
            shared = tree.shared[number]
            mine, owner = starts[root], starts[shared.owner]
            place_T[mine + shared.first : mine + shared.last] = place_T[
                owner + shared.first : owner + shared.last
            ]
            number = shared.parent
    return place_T
