"""What a model answers to held-out prompts, for samples in the report and for metrics of generated text."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from luthier.data.batch import Example
from luthier.data.tokens import last_learned
from luthier.evaluate.journal import Answered
from luthier.rollout.native import Completion, NativeGenerator
from luthier.rollout.sampling import SamplingSettings


@dataclass(frozen=True)
class Question:
    """A held-out prompt, exactly as in training, and the answer that the data has for it."""

    prompt_ids: tuple[int, ...]
    prompt: str
    reference: str


def asks(example: Example) -> bool:
    """Whether an example can be asked as a question: it has tokens to learn, and others before them."""
    if len(example.segments) != 1:
        return False
    learned = np.flatnonzero(example.segments[0].weights)
    return len(learned) > 0 and last_learned(example.segments[0].weights).start > 0


def question_of(example: Example, tokenizer: PreTrainedTokenizerFast) -> Question:
    """The last thing that the row teaches, as a question: its ids up to there are the prompt."""
    (segment,) = example.segments
    wanted = last_learned(segment.weights)
    prompt_ids = tuple(int(i) for i in segment.ids[: wanted.start])
    reference = tokenizer.decode(segment.ids[wanted].tolist(), skip_special_tokens=True)
    return Question(prompt_ids, str(tokenizer.decode(list(prompt_ids))), str(reference))


def answer(
    generator: NativeGenerator,
    questions: Sequence[Question],
    max_new_tokens: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """The model's most likely answer to each question."""
    settings = SamplingSettings(max_new_tokens=max_new_tokens, temperature=0.0)
    answers = generator.generate([q.prompt_ids for q in questions], settings, progress=progress)
    return [completions[0].text for completions in answers]


def answer_each(
    generator: NativeGenerator,
    questions: Sequence[Question],
    rows: Sequence[int],
    max_new_tokens: int,
    told: Callable[[int, Answered], None],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """The model's most likely answer to each question; `told` hears each with its place as soon as it is done.

    Args:
        rows: the number of each question's row.
    """
    last = time.perf_counter()

    def finished(place: int, found: Completion) -> None:
        nonlocal last
        now = time.perf_counter()
        question = questions[place]
        told(
            place,
            Answered(
                rows[place],
                question.prompt,
                question.reference,
                found.text,
                len(found.ids),
                found.finish,
                now - last,
            ),
        )
        last = now

    settings = SamplingSettings(max_new_tokens=max_new_tokens, temperature=0.0)
    prompts = [question.prompt_ids for question in questions]
    generator.generate(prompts, settings, progress=progress, finished=finished)
