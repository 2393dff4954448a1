"""Held-out prompts answered before and after training: samples for the report, and metrics if asked for."""

import time
from collections.abc import Callable
from itertools import islice
from typing import Literal

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from luthier.config.tree import Config
from luthier.data.loader import Dataset
from luthier.evaluate import metrics
from luthier.evaluate.answers import Question, answer, asks, question_of
from luthier.models.inference import stop_ids
from luthier.rollout.native import NativeGenerator
from luthier.runs.folder import RunFolder
from luthier.runs.metrics import MetricsWriter
from luthier.runs.samples import Sample, append_samples
from luthier.training.rows import Say


class Examiner:
    """Asks the model the same held-out questions each time. For the main rank only.

    Args:
        config: `eval.samples`, `eval.metrics`, `eval.metric_rows` and `eval.answer_tokens`.
        model: asked as it is at that moment.
        held_out: rows whose last answer is asked for; None: there is nothing to ask.
    """

    def __init__(
        self,
        config: Config,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        held_out: Dataset | None,
    ):
        self.settings = config.eval
        metrics_of = [
            metrics.find(name) for name in self.settings.metrics
        ]  # unknown names fail before any work
        wanted = self.settings.samples
        available = len(held_out.lengths) if held_out is not None else 0
        if metrics_of:
            wanted = max(wanted, self.settings.metric_rows or available)
        self.questions: list[Question] = []
        if held_out is not None:
            examples = filter(asks, map(held_out.example, range(available)))
            self.questions = [question_of(one, tokenizer) for one in islice(examples, wanted)]
        stop = stop_ids(model, tokenizer)
        self.generator = NativeGenerator(model, eos_token_ids=stop, tokenizer=tokenizer)

    def examine(
        self, when: Literal["before", "after"], step: int, folder: RunFolder, writer: MetricsWriter, say: Say
    ) -> dict[str, float]:
        """Answers all questions, writes samples and metrics into the run, and returns the metrics."""
        if not self.questions:
            return {}
        say(f"answering {len(self.questions)} held-out prompts {when} training")
        answers = answer(self.generator, self.questions, self.settings.answer_tokens, _now_and_then(say))
        shown = list(zip(self.questions, answers, strict=True))[: self.settings.samples]
        append_samples(
            folder.samples,
            [Sample(when, i, q.prompt, text, q.reference) for i, (q, text) in enumerate(shown)],
        )
        if not self.settings.metrics:
            return {}
        rows = self.settings.metric_rows or len(answers)
        references = [question.reference for question in self.questions][:rows]
        values = metrics.score(answers[:rows], references, self.settings.metrics).values
        writer.write("evaluation", step, {"when": when, **values})
        return values


def _now_and_then(say: Say, seconds: float = 10.0) -> Callable[[int, int], None]:
    """Tells how many prompts are answered, at most every few seconds."""
    last = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last >= seconds and done < total:
            last = time.monotonic()
            say(f"answered {done} of {total}")

    return progress
