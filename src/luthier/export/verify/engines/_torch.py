"""What engines that compute with torch have in common."""

import gc
from collections.abc import Collection, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from luthier.data.chat import ChatTemplate
from luthier.data.tokens import TokenEncoder
from luthier.errors import DataError, RowRefused
from luthier.export.verify.engine import Messages


class TorchModel:
    """A causal model of transformers, or what behaves as one. The default template is the tokenizer's own."""

    name = "transformers"
    caveat = ""

    def __init__(self, model: Any, tokenizer: Any):
        self._model: Any = model.eval()
        self._encoder = TokenEncoder(tokenizer)
        try:
            self._template = ChatTemplate(tokenizer) if tokenizer.chat_template else None
        except DataError:
            self._template = None  # training with it says what is wrong

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._model = None
        gc.collect()

    def faults(self) -> list[str]:
        """None: it has no description besides what is loaded."""
        return []

    def ids(self, text: str) -> list[int]:
        """Tokens of a text."""
        return self._encoder.encode(text).ids.tolist()

    def render(self, messages: Messages, tools: Sequence[Any] | None) -> str | None:
        """The text of a conversation up to where the answer begins."""
        if self._template is None:
            return None
        try:
            return self._template.prompt_text([dict(one) for one in messages], list(tools) if tools else None)
        except RowRefused as refusal:
            return f"refused: {refusal}"

    def logits(self, ids: Sequence[int], last: int) -> Tensor:
        """Scores behind each of the last tokens: [T, V], fp32."""
        with torch.no_grad():
            found = self._model(input_ids=self._tensor(ids), use_cache=False).logits
        return found[0, -last:].float().cpu()

    def greedy(self, ids: Sequence[int], most: int, ends: Collection[int]) -> list[int]:
        """The likeliest next tokens, with the model's own cache."""
        return self.answer(ids, most, ends, 1)[0]

    def answer(
        self, ids: Sequence[int], most: int, ends: Collection[int], last: int
    ) -> tuple[list[int], Tensor]:
        """The same, with the scores behind the last `last` of `ids` and behind all but the last of the answer: [T, V],
        fp32. Every token is fed once."""
        found: list[int] = []
        scores: list[Tensor] = []
        fed, cache = self._tensor(ids), None
        with torch.no_grad():
            while len(found) < most and (not found or found[-1] not in ends):
                out = self._model(input_ids=fed, past_key_values=cache, use_cache=True)
                cache = out.past_key_values
                scores.append(
                    out.logits[0, -last:].float().cpu().clone()
                )  # not the whole prompt's, kept alive
                found.append(int(scores[-1][-1].argmax()))
                fed = self._tensor(found[-1:])
        return found, torch.cat(scores) if scores else torch.empty(0, 0)

    def _tensor(self, ids: Sequence[int]) -> Tensor:
        return torch.tensor([list(ids)], device=next(self._model.parameters()).device)
