"""A model against held-out rows: how well it predicts them, and metrics of its own answers."""

import hashlib
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np

from luthier.config.data_section import SetSection
from luthier.data.batch import Example
from luthier.data.encode import EncodeOptions
from luthier.data.encode_text import BYTES
from luthier.data.pipeline import Plan, Recipe
from luthier.data.prepare import prepare_plan
from luthier.data.store import TokenDataset
from luthier.errors import DataError, ModelError
from luthier.evaluate import metrics
from luthier.evaluate.answers import Question, answer_each, asks, question_of
from luthier.evaluate.columns import texts_of
from luthier.evaluate.intervals import Interval, Sums, interval
from luthier.evaluate.journal import Answered, Journal, digest
from luthier.evaluate.likelihood import bits_per_byte_of, loss_of, predict
from luthier.evaluate.llama_file import LlamaFile, answer_in, predicted_by
from luthier.models.inference import Loaded
from luthier.models.tripwire import choose_policy
from luthier.rollout.native import NativeGenerator

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Keep:
    """Where what is found of each row is kept, and what it is found of."""

    folder: Path
    label: str
    """What the file is called after; the data and the settings add a hash of theirs."""
    model: str
    """Changes with the model's weights: results of other weights are not gone on with."""


@dataclass(frozen=True)
class Evaluation:
    """What was measured, and on how much."""

    num_rows: int
    """Rows that were answered, or if none was, rows that were predicted; the loss is over all rows that can be used."""
    loss: float
    """Mean negative log-likelihood of a target token, in nats."""
    values: dict[str, float]
    """Metrics of the generated answers by name."""
    bits_per_byte: float | None = None
    """Of plain text; None where rows are anything else."""
    sums: dict[str, Sums] = field(default_factory=dict)
    """What each row adds to `loss`, `bits_per_byte` and the metrics, where an interval can be told."""
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """For each of `sums` what its rows are, the same for every model."""
    tokens_per_second: float | None = None
    """Tokens of answers a second, many at once."""
    journal: Path | None = None
    """Where the rows' results are."""
    answers: dict[str, Answered] = field(default_factory=dict)
    """What the model wrote, by the same keys."""

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)

    @property
    def intervals(self) -> dict[str, Interval]:
        """95 % intervals by name, `perplexity` too; how they are found: `intervals.py`."""
        found = {name: range_ for name, sums in self.sums.items() if (range_ := interval(sums))}
        if loss := found.get("loss"):
            found["perplexity"] = Interval(math.exp(loss.low), math.exp(loss.high))
        return found


def evaluate(
    loaded: Loaded | LlamaFile,
    data: Sequence[str | Path],
    *,
    metric_names: Sequence[str] | None = None,
    num_rows: int | None = None,
    answer_tokens: int = 128,
    max_length: int = 4096,
    progress: Progress | None = None,
    keep: Keep | None = None,
) -> Evaluation:
    """Measures a model on the rows of files that training could read.

    Args:
        loaded: the model with its tokenizer and template, or a GGUF file that llama.cpp computes.
        data: files and folders.
        metric_names: metrics of generated answers; empty: only the loss. None: exact_match, where there is something
            to answer.
        num_rows: answer only this many rows, from the first on.
        answer_tokens: longest answer.
        max_length: rows with more tokens are left out.
        progress: told (answers done, all answers).
        keep: write what is found of each row there, and go on with what is there already.

    Raises:
        ModelError: metrics of answers are asked for, and the model has no chat template.
        DataError: no row can be used, or a metric of answers is asked for where no row asks anything.
        ConfigError: there is no metric of that name.
    """
    named = metric_names is not None
    wanted = [metrics.find(name, columns=True) for name in (metric_names if named else ("exact_match",))]
    no_template = "this model has no chat template, so the rows cannot be put to it; choose an instruct model"
    if loaded.template is None and metric_names:
        raise ModelError(no_template)
    recipe = Recipe(loaded.tokenizer, EncodeOptions(max_length, None), loaded.template, no_template)
    sets = tuple(one if isinstance(one, SetSection) else SetSection(path=str(one)) for one in data)
    plan = Plan(sets, recipe)
    rows = prepare_plan(plan, max_drop_fraction=1.0)
    asking = _asking(rows, num_rows) if wanted else []
    if named and wanted and not asking:
        raise DataError(
            f"the rows have no question to answer, as plain text has none, so {', '.join(metric_names or ())} cannot "
            "be measured; ask for no metric of answers"
        )
    texts = {
        one.column: texts_of(plan, one.column, [int(rows.row_numbers[place]) for place in asking])
        for one in wanted
        if one.column
    }
    with _journal(keep, rows, answer_tokens, max_length) as journal:
        if isinstance(loaded, LlamaFile):
            _in_llama_cpp(loaded, rows, asking, journal, answer_tokens, progress)
        else:
            _predict(loaded, rows, journal, max_length)
            _answer(loaded, rows, asking, journal, answer_tokens, progress)
    return _evaluation(rows, asking, journal, wanted, texts)


def _asking(rows: TokenDataset, num_rows: int | None) -> list[int]:
    """The places of the examples that are put to the model as questions."""
    every = ((place, rows.example(place)) for place in range(len(rows)))
    return [
        place for place, _ in islice((one for one in every if asks(one[1]) and not _plain(one[1])), num_rows)
    ]


def _plain(example: Example) -> bool:
    """Whether it is plain text, which asks nothing."""
    return not np.isnan(np.ravel(example.columns.get(BYTES, np.nan))).all()


def _journal(keep: Keep | None, rows: TokenDataset, answer_tokens: int, max_length: int) -> Journal:
    """The journal of these rows; of rows that were read otherwise there is another one."""
    if keep is None:
        return Journal()
    content = hashlib.sha256()
    for place in range(len(rows)):
        for segment in rows.example(place).segments:
            content.update(segment.ids.tobytes())
            content.update(segment.weights.tobytes())
    about = {
        "version": 1,
        "model": keep.model,
        "rows": len(rows),
        "content": content.hexdigest()[:16],
        "answer_tokens": answer_tokens,
        "max_length": max_length,
    }
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", keep.label)
    return Journal.open(keep.folder / f"{name}-{digest(about)[:8]}.jsonl", about)


def _predict(loaded: Loaded, rows: TokenDataset, journal: Journal, max_length: int) -> None:
    places = [place for place in range(len(rows)) if place not in journal.predicted]
    if places:
        policy = choose_policy(loaded.model).policy
        predict(policy, rows, places, journal, micro_tokens=max_length, device=loaded.model.device)


def _answer(
    loaded: Loaded,
    rows: TokenDataset,
    asking: Sequence[int],
    journal: Journal,
    answer_tokens: int,
    progress: Progress | None,
) -> None:
    places = [place for place in asking if place not in journal.answered]
    if not places:
        return
    questions, numbers = _questions(loaded, rows, places)
    generator = NativeGenerator(loaded.model, eos_token_ids=loaded.eos_token_ids, tokenizer=loaded.tokenizer)
    answer_each(
        generator,
        questions,
        numbers,
        answer_tokens,
        lambda at, found: journal.answer(places[at], found),
        progress,
    )


def _in_llama_cpp(
    file: LlamaFile,
    rows: TokenDataset,
    asking: Sequence[int],
    journal: Journal,
    answer_tokens: int,
    progress: Progress | None,
) -> None:
    """What the two above do, of a file in llama.cpp."""
    unknown = [place for place in range(len(rows)) if place not in journal.predicted]
    open_places = [place for place in asking if place not in journal.answered]
    if not unknown and not open_places:
        return
    questions, numbers = _questions(file, rows, open_places)
    texts = [len(rows.example(place)) for place in unknown]
    with file.open(max([*texts, *(len(one.prompt_ids) + answer_tokens for one in questions)])) as engine:
        for place in unknown:
            row = int(rows.row_numbers[place])
            journal.predict(place, predicted_by(engine, rows.example(place), row))
        answer_in(
            engine,
            file,
            questions,
            numbers,
            lambda at, found: journal.answer(open_places[at], found),
            most=answer_tokens,
            context=engine.context,
            progress=progress,
        )


def _questions(
    loaded: Loaded | LlamaFile, rows: TokenDataset, places: Sequence[int]
) -> tuple[list[Question], list[int]]:
    """What examples ask, and the numbers of their rows."""
    questions = [question_of(rows.example(place), loaded.tokenizer) for place in places]
    return questions, [int(rows.row_numbers[place]) for place in places]


def _evaluation(
    rows: TokenDataset,
    asking: Sequence[int],
    journal: Journal,
    wanted: Sequence[metrics.Metric],
    texts: dict[str, list[str]],
) -> Evaluation:
    """The numbers over all rows, from what is known of each."""
    predicted = [journal.predicted[place] for place in range(len(rows))]
    answered = [journal.answered[place] for place in asking]
    predicted_keys = _keys([one.row for one in predicted])
    answered_keys = _keys([one.row for one in answered])
    sums, keys = {"loss": loss_of(predicted)}, {"loss": predicted_keys}
    if (per_byte := bits_per_byte_of(predicted)) is not None:
        sums["bits_per_byte"], keys["bits_per_byte"] = per_byte, predicted_keys
    values: dict[str, float] = {}
    answers, references = [one.answer for one in answered], [one.reference for one in answered]
    for metric in wanted if answered else ():
        compared = texts[metric.column] if metric.column else references
        found, tally = metric.both(answers, compared)
        values |= found
        if tally is not None:
            sums[metric.label], keys[metric.label] = tally, answered_keys
    seconds, tokens = sum(one.seconds for one in answered), sum(one.tokens for one in answered)
    return Evaluation(
        len(answered) or len(rows),
        sums["loss"].estimate,
        values,
        per_byte.estimate if per_byte else None,
        sums,
        keys,
        tokens / seconds if seconds else None,
        journal.path,
        dict(zip(answered_keys, answered, strict=True)),
    )


def _keys(rows: Sequence[int]) -> tuple[str, ...]:
    """A name for each example: its row's number, and which one of the row's examples it is."""
    seen: dict[int, int] = {}
    found: list[str] = []
    for row in rows:
        seen[row] = seen.get(row, 0) + 1
        found.append(f"{row}.{seen[row]}")
    return tuple(found)
