"""What a model is trained on: documents laid end to end, and the predictions to score in them.

An `Example` is one row of data as a small forest of token segments: a chat is one segment, a preference pair
one prompt with two children. A `Batch` lays many examples end to end without padding. Every method is a
function of the log-probabilities of a batch's N predictions (../docs/design.md).

Shape suffixes: T tokens of the stream, S segments, S1 = S + 1, N predictions, Q sequences.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Segment:
    """A run of tokens that continues its parent, or starts a document of its own."""

    ids: NDArray[np.int32]
    """Token ids, at least one."""
    weights: NDArray[np.float32]
    """Weight of each token as a target; 0 where it is not learned."""
    parent: int = -1
    """Index in the example of the segment that this one continues; -1: none. Always an earlier one."""


@dataclass(frozen=True)
class Example:
    """One row of data, ready to be packed. Its leaves, in order, are its sequences."""

    segments: tuple[Segment, ...]
    row: int = -1
    """Number of the row in the data, for messages about it."""
    columns: dict[str, float | tuple[float, ...]] = field(default_factory=dict)
    """Facts a method needs (label, reward ...): one for all sequences of the row, or a tuple with one for each."""

    given: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """What is known beforehand of each of its predictions, such as a reference's log-probabilities: [n] or [n, …].

    In the order in which `collate` lays them out: segment by segment (see `learned_places`).
    """

    def __len__(self) -> int:
        return sum(len(s.ids) for s in self.segments)

    @property
    def num_predictions(self) -> int:
        """How many of its tokens are learned."""
        return sum(len(learned_places(segment)) for segment in self.segments)


def learned_places(segment: Segment) -> NDArray[np.int64]:
    """Which tokens of a segment are predicted. Nothing stands before a root's first token, so that one is not."""
    learned = np.flatnonzero(segment.weights)
    return learned if segment.parent >= 0 else learned[learned > 0]


@dataclass(frozen=True)
class Batch:
    """One micro-batch: a stream of tokens and the predictions to score in it."""

    tokens_T: Tensor
    positions_T: Tensor
    """Distance of each token from the start of its document, through its ancestors."""
    starts_S1: Tensor
    """Where each segment starts in the stream; the last entry is T. Always on the CPU."""
    parent_S: Tensor
    """The segment that each one continues, -1 for a root. Always on the CPU."""
    source_N: Tensor
    """Stream index of the hidden state that makes the prediction."""
    target_N: Tensor
    """Token id to predict."""
    weight_N: Tensor
    """How much the prediction counts."""
    sequence_N: Tensor
    """Which sequence the prediction belongs to."""
    columns: dict[str, Tensor]
    """Per-sequence facts, each of shape [Q]; `row` is always among them, -1 for padding. NaN: not known."""
    given: dict[str, Tensor] = field(default_factory=dict)
    """What is known beforehand of each prediction, each of shape [N] or [N, …]."""
    num_padding: int = 0
    """Tokens at the end that belong to no row."""
    longest: int | None = None
    """A bound on the tokens of a segment that all batches of a fixed shape have in common."""

    @property
    def num_tokens(self) -> int:
        """Tokens of rows, padding not counted."""
        return self.tokens_T.numel() - self.num_padding

    @property
    def num_sequences(self) -> int:
        return self.columns["row"].numel()

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch with everything that the device computes on moved there."""
        moved = ("tokens_T", "positions_T", "source_N", "target_N", "weight_N", "sequence_N")
        columns = {name: column.to(device) for name, column in self.columns.items()}
        given = {name: value.to(device) for name, value in self.given.items()}
        return replace(
            self, columns=columns, given=given, **{name: getattr(self, name).to(device) for name in moved}
        )

    def padded(
        self, num_tokens: int, num_predictions: int, num_segments: int, longest: int | None = None
    ) -> "Batch":
        """The same batch in a given shape, for what must see one shape only (CUDA graphs, compilers).

        The tokens that are missing become documents of their own behind the others, as many as segments are
        missing and of equal lengths, some of them empty if need be; the predictions that are missing have weight
        0 and belong to the first of these. So no loss, count or gradient of a row changes.
        """
        tokens, segments = num_tokens - self.tokens_T.numel(), num_segments - len(self.parent_S)
        predictions = num_predictions - len(self.target_N)
        assert tokens >= 0 and predictions >= 0 and segments >= 1, (
            "the shape has room, and for one more segment"
        )
        bounds = torch.arange(segments + 1) * tokens // segments
        fill = self.tokens_T.new_zeros(predictions)
        columns = {
            name: torch.cat([column, column.new_full((segments,), -1 if name == "row" else 0)])
            for name, column in self.columns.items()
        }
        given = {
            name: torch.cat([value, value.new_zeros(predictions, *value.shape[1:])])
            for name, value in self.given.items()
        }
        positions = torch.arange(tokens) - bounds[:-1].repeat_interleave(bounds.diff())
        return replace(
            self,
            tokens_T=torch.cat([self.tokens_T, self.tokens_T.new_zeros(tokens)]),
            positions_T=torch.cat([self.positions_T, positions.to(self.positions_T)]),
            starts_S1=torch.cat([self.starts_S1, self.starts_S1[-1] + bounds[1:]]),
            parent_S=torch.cat([self.parent_S, self.parent_S.new_full((segments,), -1)]),
            source_N=torch.cat([self.source_N, fill + (num_tokens - 1)]),
            target_N=torch.cat([self.target_N, fill]),
            weight_N=torch.cat([self.weight_N, self.weight_N.new_zeros(predictions)]),
            sequence_N=torch.cat([self.sequence_N, fill + self.num_sequences]),
            columns=columns,
            given=given,
            num_padding=self.num_padding + tokens,
            longest=longest,
        )

    def paths(self) -> list[list[int]]:
        """For each leaf, the segments from its root down to itself."""
        parents = self.parent_S.tolist()
        leaves = sorted(set(range(len(parents))) - set(parents))
        return [_path(parents, leaf) for leaf in leaves]


def _path(parents: Sequence[int], segment: int) -> list[int]:
    path = [segment]
    while parents[path[-1]] >= 0:
        path.append(parents[path[-1]])
    return path[::-1]


def collate(examples: Sequence[Example]) -> Batch:
    """Lays examples end to end. The first token of a child is predicted from the last one of its parent."""
    starts, parents, tokens, positions = [0], [], [], []
    source, target, weight, sequence = [], [], [], []
    columns: dict[str, list[float]] = {"row": []}
    for example in examples:
        first_segment, first_sequence = len(parents), len(columns["row"])
        sequence_of = _sequence_of_segments(example)
        depth: list[int] = []  # tokens from the document's start to the end of each segment
        for index, segment in enumerate(example.segments):
            assert segment.parent < index, "a segment comes after its parent"
            start, num = starts[-1], len(segment.ids)
            before = depth[segment.parent] if segment.parent >= 0 else 0
            depth.append(before + num)
            learned = learned_places(segment)
            origin = start + learned - 1
            if segment.parent >= 0:
                origin[learned == 0] = starts[first_segment + segment.parent + 1] - 1
            tokens.append(segment.ids)
            positions.append(np.arange(before, before + num))
            source.append(origin)
            target.append(segment.ids[learned])
            weight.append(segment.weights[learned])
            sequence.append(np.full(len(learned), first_sequence + sequence_of[index]))
            starts.append(start + num)
            parents.append(first_segment + segment.parent if segment.parent >= 0 else -1)
        _add_columns(columns, example, max(sequence_of) + 1)
    return Batch(
        tokens_T=_join(tokens, torch.int64),
        positions_T=_join(positions, torch.int64),
        starts_S1=torch.tensor(starts),
        parent_S=torch.tensor(parents, dtype=torch.int64),
        source_N=_join(source, torch.int64),
        target_N=_join(target, torch.int64),
        weight_N=_join(weight, torch.float32),
        sequence_N=_join(sequence, torch.int64),
        columns={name: torch.tensor(values) for name, values in columns.items()},
        given=_given(examples, sum(map(len, target))),
    )


def _given(examples: Sequence[Example], num_predictions: int) -> dict[str, Tensor]:
    """What is known of the predictions of all examples: each of them knows it, or none."""
    names = examples[0].given.keys() if examples else ()
    assert all(example.given.keys() == names for example in examples), "all rows know the same"
    joined = {name: torch.from_numpy(np.concatenate([e.given[name] for e in examples])) for name in names}
    assert all(len(value) == num_predictions for value in joined.values()), "one for each prediction"
    return joined


def _add_columns(columns: dict[str, list[float]], example: Example, num_sequences: int) -> None:
    """The row's facts behind those of the rows before it; NaN where a row does not have a fact."""
    before = len(columns["row"])
    for name in example.columns.keys() - columns.keys():
        columns[name] = [math.nan] * before
    for name, values in columns.items():
        value = example.row if name == "row" else example.columns.get(name, math.nan)
        each = value if isinstance(value, tuple) else (value,) * num_sequences
        assert len(each) == num_sequences, (
            f"{name} has a value for each of the row's {num_sequences} sequences"
        )
        values.extend(each)


def _sequence_of_segments(example: Example) -> list[int]:
    """For each segment, the first leaf below it, counted in order."""
    parents = [segment.parent for segment in example.segments]
    leaves = sorted(set(range(len(parents))) - set(parents))
    result = [-1] * len(parents)
    for number, leaf in enumerate(leaves):
        for segment in _path(parents, leaf):
            if result[segment] < 0:
                result[segment] = number
    return result


def _join(parts: list[np.ndarray], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.concatenate(parts) if parts else np.empty(0)).to(dtype)
