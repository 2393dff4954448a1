"""A model against held-out rows: how well it predicts them, and metrics of its own answers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from luthier.config.data_section import SetSection
from luthier.data.batch import Example
from luthier.data.encode import EncodeOptions
from luthier.data.encode_text import BYTES
from luthier.data.loader import in_order
from luthier.data.pipeline import Plan, Recipe
from luthier.data.prepare import prepare_plan
from luthier.errors import DataError, ModelError
from luthier.evaluate import metrics
from luthier.evaluate.answers import answer, asks, question_of
from luthier.evaluate.loss import evaluate_loss
from luthier.methods.sft import SFT
from luthier.models.inference import Loaded
from luthier.models.tripwire import choose_policy
from luthier.parallel.cluster import Cluster
from luthier.rollout.native import NativeGenerator


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

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)


def evaluate(
    loaded: Loaded,
    data: Sequence[str | Path],
    *,
    metric_names: Sequence[str] | None = None,
    num_rows: int | None = None,
    answer_tokens: int = 128,
    max_length: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measures a model on the rows of files that training could read.

    Args:
        loaded: the model with its tokenizer and template.
        data: files and folders.
        metric_names: metrics of generated answers; empty: only the loss. None: exact_match, where there is something
            to answer.
        num_rows: answer only this many rows, from the first on.
        answer_tokens: longest answer.
        max_length: rows with more tokens are left out.
        progress: told (answers done, all answers).

    Raises:
        ModelError: metrics of answers are asked for, and the model has no chat template.
        DataError: no row can be used, or a metric of answers is asked for where no row asks anything.
        ConfigError: there is no metric of that name.
    """
    for name in metric_names or ():
        metrics.find(name)  # before any work
    no_template = "this model has no chat template, so the rows cannot be put to it; choose an instruct model"
    if loaded.template is None and metric_names:
        raise ModelError(no_template)
    recipe = Recipe(loaded.tokenizer, EncodeOptions(max_length, None), loaded.template, no_template)
    sets = tuple(one if isinstance(one, SetSection) else SetSection(path=str(one)) for one in data)
    rows = prepare_plan(Plan(sets, recipe), max_drop_fraction=1.0)
    policy = choose_policy(loaded.model).policy
    values = evaluate_loss(policy, SFT(), in_order(rows, max_length), Cluster(), loaded.model.device)
    found: dict[str, float] = {}
    questions, named = [], metric_names is not None
    if metric_names is None or metric_names:
        metric_names = metric_names or ("exact_match",)
        every = map(rows.example, range(len(rows)))
        asking = (example for example in every if asks(example) and not _plain(example))
        questions = [question_of(example, loaded.tokenizer) for example in islice(asking, num_rows)]
        if not questions and named:
            raise DataError(
                f"the rows have no question to answer, as plain text has none, so {', '.join(metric_names)} cannot be "
                "measured; ask for no metric of answers"
            )
    if questions:
        generator = NativeGenerator(
            loaded.model, eos_token_ids=loaded.eos_token_ids, tokenizer=loaded.tokenizer
        )
        answers = answer(generator, questions, answer_tokens, progress)
        found = metrics.score(answers, [q.reference for q in questions], metric_names).values
    return Evaluation(len(questions) or len(rows), values["loss"], found, values.get("bits_per_byte"))


def _plain(example: Example) -> bool:
    """Whether it is plain text, which asks nothing."""
    return not np.isnan(np.ravel(example.columns.get(BYTES, np.nan))).all()
