"""A model against held-out rows: loss of the answers in the data, and metrics of its own answers."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from luthier.data.loader import in_order
from luthier.data.prepare import prepare
from luthier.errors import ModelError
from luthier.evaluate import metrics
from luthier.evaluate.answers import answer, question_of
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
    """Rows that were answered; the loss is over all rows that can be used."""
    loss: float
    """Mean negative log-likelihood of a target token, in nats."""
    values: dict[str, float]
    """Metrics of the generated answers by name."""

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)


def evaluate(
    loaded: Loaded,
    data: Sequence[str | Path],
    *,
    metric_names: Sequence[str] = ("exact_match",),
    num_rows: int | None = None,
    answer_tokens: int = 128,
    max_length: int = 4096,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measures a model on the rows of files that training could read.

    Args:
        loaded: the model with its tokenizer and template.
        data: files and folders.
        metric_names: metrics of generated answers; none: only the loss.
        num_rows: answer only this many rows, from the first on.
        answer_tokens: longest answer.
        max_length: rows with more tokens are left out.
        progress: told (answers done, all answers).

    Raises:
        ModelError: the model has no chat template.
        DataError: no row can be used.
        ConfigError: there is no metric of that name.
    """
    for name in metric_names:
        metrics.find(name)  # before any work
    if loaded.template is None:
        raise ModelError(
            "this model has no chat template, so the rows cannot be put to it; choose an instruct model"
        )
    rows = prepare(data, loaded.template, max_length=max_length, max_drop_fraction=1.0)
    policy = choose_policy(loaded.model).policy
    values = evaluate_loss(policy, SFT(), in_order(rows, max_length), Cluster(), loaded.model.device)
    found: dict[str, float] = {}
    asked = range(min(num_rows or len(rows), len(rows)))
    if metric_names:
        questions = [question_of(rows.example(i), loaded.tokenizer) for i in asked]
        generator = NativeGenerator(
            loaded.model, eos_token_ids=loaded.eos_token_ids, tokenizer=loaded.tokenizer
        )
        answers = answer(generator, questions, answer_tokens, progress)
        found = metrics.score(answers, [q.reference for q in questions], metric_names).values
    return Evaluation(len(asked), values["loss"], found)
