"""The rows of a workload: random token ids in documents of recorded lengths, the same for every contestant.

As in the recorded data, all rows begin with the same few tokens: those of the chat template's system prompt.

Kept as flat arrays, so that a contestant without Luthier reads them with numpy alone.
"""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.workloads import Size, Workload

LENGTHS = Path(__file__).with_name("lengths")
FIRST_ID = 8
"""Smaller ids are special: padding, end of sequence."""


@dataclass(frozen=True)
class Rows:
    """Rows of one prompt and its answers, laid end to end."""

    ids: NDArray[np.int32]
    lengths: NDArray[np.int64]
    """[rows, 1 + answers]: tokens of the prompt and of each answer."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def tokens(self) -> NDArray[np.int64]:
        """Tokens of each row."""
        return self.lengths.sum(1)

    @property
    def logical(self) -> NDArray[np.int64]:
        """Tokens of each row if every answer had a prompt of its own: what one counts where prompts are shared."""
        return self.tokens + self.lengths[:, 0] * (self.lengths.shape[1] - 2)

    def row(self, index: int) -> list[NDArray[np.int32]]:
        """Prompt and answers of one row."""
        start = int(self.tokens[:index].sum())
        edges = start + np.concatenate([[0], np.cumsum(self.lengths[index])])
        return [self.ids[a:b] for a, b in pairwise(edges)]

    def between(self, first: int, end: int) -> "Rows":
        """The rows from `first` up to `end`."""
        starts = np.concatenate([[0], np.cumsum(self.tokens)])
        return Rows(self.ids[starts[first] : starts[end]], self.lengths[first:end])

    def flat(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """One row as ids, and which of them are learned: those of the answer."""
        parts = self.row(index)
        learned = [np.full(len(part), place > 0) for place, part in enumerate(parts)]
        return np.concatenate(parts), np.concatenate(learned)

    def save(self, path: Path) -> None:
        """Writes the rows to one file."""
        np.savez(path, ids=self.ids, lengths=self.lengths)


def load_rows(path: Path | str) -> Rows:
    """Rows from a file that `save` wrote."""
    with np.load(path) as arrays:
        return Rows(arrays["ids"], arrays["lengths"])


def recorded(name: str) -> NDArray[np.int64]:
    """The recorded lengths of a data set, [rows, parts]."""
    return np.array(_record(name)["lengths"], dtype=np.int64)


def common_beginning(name: str) -> int:
    """How many first tokens all rows of a data set share."""
    return int(_record(name)["common"])


def _record(name: str) -> dict[str, Any]:
    return json.loads((LENGTHS / f"{name}.json").read_text(encoding="utf-8"))


def make_rows(
    workload: Workload,
    size: Size,
    *,
    tokens: int,
    num_rows: int,
    vocabulary: int,
    longest: int,
    seed: int = 0,
) -> Rows:
    """`num_rows` rows of a workload.

    `tokens`: length of documents where that is fixed. `longest`: most tokens of a row; longer recorded ones are
    not drawn, as TRL's default would cut them, and everybody is to read the same tokens.
    """
    draw = np.random.default_rng(seed)
    if workload.kind == "grpo":
        spread = draw.normal(workload.answer, workload.answer / 2, (num_rows, workload.group))
        answers = np.clip(spread, 16, 2 * workload.answer).astype(np.int64)
        lengths = np.concatenate([np.full((num_rows, 1), workload.prompt), answers], axis=1)
    elif workload.lengths:
        known = recorded(workload.lengths)
        known = known[known.sum(1) <= longest]
        lengths = known[draw.permutation(len(known))[np.arange(num_rows) % len(known)]]
    else:
        lengths = np.tile([[workload.prompt, tokens - workload.prompt]], (num_rows, 1))
    ids = draw.integers(FIRST_ID, vocabulary, int(lengths.sum())).astype(np.int32)
    if workload.lengths:  # the template begins every row alike
        common = np.arange(common_beginning(workload.lengths))
        starts = np.cumsum(lengths.sum(1)) - lengths.sum(1)
        ids[starts[:, None] + common] = ids[common]
    return Rows(ids, lengths)
