"""Files of rows that are tokens already, and streams over them: nothing to render, so tests are quick."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chat_samples import byte_level
from luthier.config.data_section import CleanSection, SetSection
from luthier.data.encode import EncodeOptions
from luthier.data.pipeline import Plan, Recipe
from luthier.data.stream import StreamSource
from luthier.data.windows import SharedWindows, Windows

TOKENIZER = byte_level()
LONGEST = 24


def write_tokens(path: Path, num_rows: int, seed: int = 0, faults: Sequence[int] = ()) -> Path:
    """Rows of random lengths whose first token tells them apart; those in `faults` are broken."""
    draw = np.random.default_rng(seed)
    lines = []
    for row in range(num_rows):
        ids = [row % 200, *draw.integers(0, 200, int(draw.integers(1, LONGEST - 1))).tolist()]
        lines.append("{broken" if row in faults else json.dumps({"input_ids": ids}))
    path.write_text("".join(line + "\n" for line in lines))
    return path


def token_plan(*files: Path, clean: CleanSection | None = None, **options: Any) -> Plan:
    """What is read of such files."""
    recipe = Recipe(TOKENIZER, EncodeOptions(LONGEST, None), None, "there is no chat template")
    sets = tuple(SetSection(path=str(file)) for file in files)
    return Plan(sets, recipe, clean=clean or CleanSection(), **options)


def token_stream(
    plan: Plan, folder: Path, *, window_rows: int = 7, keep: bool = False, workers: int = 0, **options: Any
) -> StreamSource:
    """A stream over a plan, with small steps."""
    windows = Windows(plan, window_rows, folder, keep=keep, workers=workers)
    wanted = {"tokens_per_step": 96, "micro_tokens": 32, "epochs": 1.0, "max_drop_fraction": 1.0, "seed": 3}
    return StreamSource(SharedWindows(windows, same_every_epoch=plan.same_every_epoch), **wanted | options)


def steps_of(source: StreamSource, first: int = 0, total: int = 1, most: int = 10_000) -> list[list[Any]]:
    """Every step to come, each as the rows, tokens and predictions of its micro-batches."""
    found: list[list[Any]] = []
    step = first
    # in this order: `ready` may wait, and that wait may be ended after a step that was found
    while len(found) < most and step < (total := source.ready(total)):
        batches = source.step(step)
        found.append([(b.columns["row"].tolist(), b.tokens_T.tolist(), b.source_N.tolist()) for b in batches])
        step += 1
    return found


def rows_in(steps: list[list[Any]]) -> list[int]:
    """The numbers of the rows of these steps."""
    return [int(row) for step in steps for rows, _, _ in step for row in rows]
