"""From rows a step, as other tools count, to tokens a step, as Luthier does."""

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.migrate.draft import Draft

ASSUMED_LENGTH = 1024
"""Tokens of a row where the source sets no length."""


@dataclass(frozen=True)
class Factor:
    """One of the numbers whose product is the rows of a step."""

    name: str
    value: int

    def __str__(self) -> str:
        return f"{self.name} {self.value:,}"


def put_tokens_per_step(
    draft: Draft, factors: Sequence[Factor], length: Factor | None, *, filled: bool
) -> None:
    """Sets `train.tokens_per_step`, and `train.tokens_per_micro_batch` where a row would not fit otherwise.

    `length`: the longest row in tokens; None if the source sets none. `filled`: whether each row of the
    source's batches is filled up to that length, by packing or because text is cut into blocks.
    """
    parts = [*factors, Factor("processes", draft.processes)]
    rows = 1
    for part in parts:
        rows *= part.value
    tokens = rows * (length.value if length else ASSUMED_LENGTH)
    product = " x ".join(map(str, [*parts, length or f"{ASSUMED_LENGTH:,} tokens a row, assumed"]))
    draft.put("train.tokens_per_step", tokens, f"{product} = {tokens:,} tokens")
    if not filled:
        counted = f"{draft.tool} counts rows ({rows:,} a step), Luthier tokens, so that shorter rows"
        draft.note(
            "train.tokens_per_step",
            f"{counted} make steps of more rows; `luthier data inspect` shows the mean length to multiply by",
        )
    longest = length.value if length else 0
    if longest > min(4096, tokens):
        draft.put("train.tokens_per_micro_batch", longest, "room for the longest row")
