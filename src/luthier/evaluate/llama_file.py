"""A GGUF file measured in llama.cpp, the program that will run it: how likely rows are, and what it answers.

llama.cpp is asked one row after another, so its tokens a second are those of one conversation.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

from luthier.data.batch import Example, learned_places
from luthier.data.chat import ChatTemplate
from luthier.data.encode_text import BYTES
from luthier.errors import DataError, ModelError
from luthier.evaluate.answers import Question
from luthier.evaluate.journal import Answered, Predicted
from luthier.export.verify.engine import Engine
from luthier.export.verify.engines.llama_cpp import InLlamaCpp
from luthier.models.compat import bars_on_terminals_only
from luthier.models.gguf import gguf_tokenizer, need_packages
from luthier.rollout.text import decode

_PORTION = 64
"""Predictions whose logits are normalised at a time."""


@dataclass(frozen=True)
class LlamaFile:
    """A GGUF file with what puts rows to it: its own tokenizer and template."""

    file: Path
    tokenizer: PreTrainedTokenizerFast
    template: ChatTemplate | None
    eos_token_ids: tuple[int, ...]

    @classmethod
    def load(cls, file: Path) -> "LlamaFile":
        """Reads the tokenizer that the file describes; weights are read later, by llama.cpp.

        Raises ModelError if the tokenizer cannot be read.
        """
        need_packages(f"reading {file.name}")
        try:
            with bars_on_terminals_only():
                tokenizer = gguf_tokenizer(file)
        except (ValueError, KeyError, NotImplementedError) as error:
            raise ModelError(f"transformers cannot read the tokenizer of {file.name}: {error}") from error
        template = ChatTemplate(tokenizer) if tokenizer.chat_template else None
        end = tokenizer.eos_token_id
        return cls(file, tokenizer, template, (end,) if isinstance(end, int) else ())

    def open(self, longest: int) -> InLlamaCpp:
        """The file in llama.cpp, for texts of at most so many tokens."""
        return InLlamaCpp(self.file, longest)


def predicted_by(engine: Engine, example: Example, row: int) -> Predicted:
    """How likely the learned tokens of an example of one segment are."""
    (segment,) = example.segments
    places, ids = learned_places(segment), [int(one) for one in segment.ids]
    size = float(np.ravel(example.columns.get(BYTES, math.nan))[0])
    known = None if math.isnan(size) else size
    if not len(places):
        return Predicted(row, 0.0, 0.0, 0.0, 0, known)
    first = int(places[0])
    logits_TV = engine.logits(ids[:-1], len(ids) - first)
    chosen_N, nll = torch.as_tensor(segment.ids[places], dtype=torch.long), []
    for start in range(0, len(places), _PORTION):
        part = slice(start, start + _PORTION)
        logits_NV = logits_TV[torch.as_tensor(places[part] - first)].double()
        nll.append(logits_NV.logsumexp(1) - logits_NV.gather(1, chosen_N[part, None])[:, 0])
    nll_N = torch.cat(nll).numpy()
    weight_N = segment.weights[places].astype(np.float64)
    return Predicted(
        row, float(weight_N @ nll_N), float(weight_N.sum()), float(nll_N.sum()), len(places), known
    )


def answer_in(
    engine: Engine,
    file: LlamaFile,
    questions: Sequence[Question],
    rows: Sequence[int],
    told: Callable[[int, Answered], None],
    *,
    most: int,
    context: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """The most likely answer to each question, one after another.

    Args:
        rows: the number of each question's row.
        told: hears each answer with its question's place.
        most: tokens of the longest answer.
        context: tokens that question and answer may have together.

    Raises DataError where a question leaves no room for an answer.
    """
    ends = file.eos_token_ids
    for place, (question, row) in enumerate(zip(questions, rows, strict=True)):
        start = time.perf_counter()
        prompt = list(question.prompt_ids)
        if len(prompt) >= context:
            raise DataError(
                f"row {row} asks {len(prompt):,} tokens, and the model reads {context:,}: there is no room for an "
                "answer; leave the row out, or shorten it"
            )
        ids = engine.greedy(prompt, min(most, context - len(prompt)), ends)
        finish = "eos" if ids[-1] in ends else "length"
        text = decode(file.tokenizer, ids[: -1 if finish == "eos" else None])
        seconds = time.perf_counter() - start
        told(place, Answered(row, question.prompt, question.reference, text, len(ids), finish, seconds))
        if progress:
            progress(place + 1, len(questions))
