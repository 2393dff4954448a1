"""Prompts with answers to other prompts, by which KTO estimates how far a model has moved on the whole.

Each row gets one more sequence: the answer of the next row that a micro-batch still has room for, behind this row's
prompt. Only the look ahead at a step computes it; the loss is given the row without it.

Shape suffixes: as in batch.py; N1 predictions that are kept.
"""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from luthier.data.batch import Batch, Example, Segment
from luthier.data.loader import Dataset
from luthier.errors import ConfigError, DataError

COLUMN = "mismatched"


class Mismatched:
    """The rows of a dataset, each with the answer of the next one that fits; after the last comes the first.

    Args:
        dataset: the rows.
        most_tokens: what a row may have with that answer; None: any number.
    """

    def __init__(self, dataset: Dataset, most_tokens: int | None = None):
        if len(dataset.lengths) < 2:
            raise DataError(
                "method kto compares answers with those to other prompts, and there is only one row; give more rows"
            )
        self.dataset = dataset
        own = np.asarray(dataset.lengths)
        answers = np.array([len(_answer(dataset.example(i)).ids) for i in range(len(own))], dtype=np.int64)
        self._partners = _partners(own, answers, most_tokens)
        self.lengths: NDArray[np.int64] = own + answers[self._partners]

    def example(self, index: int) -> Example:
        """The row, with one more sequence, which its column tells from the others."""
        row = _split(self.dataset.example(index))
        answer = _answer(self.dataset.example(int(self._partners[index])))
        num_own = len(row.segments) - 1
        columns: dict[str, float | tuple[float, ...]] = {
            name: (*(value if isinstance(value, tuple) else (value,) * num_own), float("nan"))
            for name, value in row.columns.items()
        }
        columns[COLUMN] = (*(0.0,) * num_own, 1.0)
        return replace(row, segments=(*row.segments, replace(answer, parent=0)), columns=columns)

    def locate(self, row: int) -> str:
        """As the dataset says."""
        return self.dataset.locate(row)


def _partners(
    own: NDArray[np.int64], answers: NDArray[np.int64], most_tokens: int | None
) -> NDArray[np.int64]:
    """For each row the next one whose answer fits behind it."""
    partners = np.roll(np.arange(len(own)), -1)
    if most_tokens is None:
        return partners
    for row in np.flatnonzero(own + answers[partners] > most_tokens):
        later = (row + np.arange(1, len(own))) % len(own)
        fitting = own[row] + answers[later] <= most_tokens
        if not fitting.any():
            raise ConfigError(
                f"method kto runs each row together with the answer of another one. The longest row has {own.max()} "
                f"tokens and the longest answer {answers.max()}, but a micro-batch holds only {most_tokens}, so "
                f"that row {row + 1} has no answer beside it. Set train.tokens_per_micro_batch: "
                f"{own.max() + answers.max()} (and train.tokens_per_step to no less), or lower data.max_length."
            )
        partners[row] = later[fitting.argmax()]
    return partners


def _split(example: Example) -> Example:
    """The row as a prompt with its answers as children, whatever it came as."""
    whole, *answers = example.segments
    if answers:
        assert all(answer.parent == 0 for answer in answers), "a prompt with answers"
        return example
    start = _first_learned(whole)
    prompt = Segment(whole.ids[:start], whole.weights[:start])
    return replace(example, segments=(prompt, Segment(whole.ids[start:], whole.weights[start:], parent=0)))


def _answer(example: Example) -> Segment:
    """The row's first answer."""
    return _split(example).segments[1]


def _first_learned(segment: Segment) -> int:
    learned = np.flatnonzero(segment.weights)
    return max(1, int(learned[0]) if len(learned) else len(segment.ids) - 1)


def select(batch: Batch, keep_Q: torch.Tensor) -> Batch | None:
    """Only these sequences of a batch, with what they continue; None if there is none. On the CPU."""
    if not bool(keep_Q.any()):
        return None
    starts, kept = batch.starts_S1.tolist(), keep_Q.tolist()
    segments = sorted({s for path, keep in zip(batch.paths(), kept, strict=True) if keep for s in path})
    number = {-1: -1} | {segment: index for index, segment in enumerate(segments)}
    token_T = torch.cat([torch.arange(starts[s], starts[s + 1]) for s in segments])
    place_T = torch.zeros(starts[-1], dtype=torch.int64)
    place_T[token_T] = torch.arange(len(token_T))
    keep_N1 = keep_Q[batch.sequence_N]
    sequence_Q = keep_Q.cumsum(0) - 1
    sizes = torch.tensor([0, *(starts[s + 1] - starts[s] for s in segments)])
    return replace(
        batch,
        tokens_T=batch.tokens_T[token_T],
        positions_T=batch.positions_T[token_T],
        starts_S1=sizes.cumsum(0),
        parent_S=torch.tensor([number[int(batch.parent_S[s])] for s in segments]),
        source_N=place_T[batch.source_N[keep_N1]],
        target_N=batch.target_N[keep_N1],
        weight_N=batch.weight_N[keep_N1],
        sequence_N=sequence_Q[batch.sequence_N[keep_N1]],
        columns={name: column[keep_Q] for name, column in batch.columns.items()},
        given={name: value[keep_N1] for name, value in batch.given.items()},
        num_padding=0,
        longest=None,
    )
