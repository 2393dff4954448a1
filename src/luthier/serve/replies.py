"""What is sent back, in the JSON that OpenAI's clients read: whole answers and streamed pieces of them."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.rollout.rows import Finish
from luthier.rollout.text import REPLACEMENT
from luthier.serve.engine import Order, Piece
from luthier.serve.shelf import Offered
from luthier.serve.tool_calls import Call, CallReader

LEAST_LOGP = -9999.0
"""JSON has no infinity; OpenAI writes this for what is as good as impossible."""


@dataclass
class Portion:
    """A part of an answer: what one token adds to it, or the whole, put together from these."""

    index: int
    text: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    logprobs: list[dict[str, Any]] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    finish: str | None = None

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.text or self.calls or self.logprobs or self.finish)

    def add(self, next: "Portion") -> None:
        """Puts what follows behind."""
        self.text += next.text
        self.calls += next.calls
        self.logprobs += next.logprobs
        self.ids += next.ids
        self.finish = next.finish or self.finish


class AnswerReader:
    """Reads the pieces of one answer: its text, its calls and, if they are asked for, its log-probabilities."""

    def __init__(
        self,
        index: int,
        sample: int,
        offered: Offered,
        calls: CallReader | None,
        eos: frozenset[int],
        *,
        logprobs: bool,
    ):
        self.index, self.sample = index, sample
        self._offered, self._calls, self._eos, self._logprobs = offered, calls, eos, logprobs
        self._num_called = 0

    def push(self, piece: Piece) -> Portion:
        """What this token adds."""
        delta = Portion(self.index, ids=[piece.token])
        if self._calls is None:
            delta.text = piece.text
        else:
            parts = self._calls.push(piece.text) + (self._calls.close() if piece.finish else [])
            delta.text = "".join(part for part in parts if isinstance(part, str))
            delta.calls = [self._call(part) for part in parts if isinstance(part, Call)]
        if self._logprobs and (piece.token not in self._eos or piece.finish != "eos"):
            delta.logprobs = [self._logprob(piece)]
        if piece.finish:
            delta.finish = self._finish(piece.finish)
        return delta

    def _call(self, call: Call) -> dict[str, Any]:
        self._num_called += 1
        return {"index": self._num_called - 1, **call.as_openai()}

    def _finish(self, finish: Finish) -> str:
        if finish == "length":
            return "length"
        return "tool_calls" if self._num_called else "stop"

    def _logprob(self, piece: Piece) -> dict[str, Any]:
        likeliest = [self._one(token, logp) for token, logp in piece.likeliest]
        return {**self._one(piece.token, piece.logp), "top_logprobs": likeliest}

    def _one(self, token: int, logp: float) -> dict[str, Any]:
        tokenizer: Any = self._offered.loaded.tokenizer
        text = tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        known = None if REPLACEMENT in text else list(text.encode())
        return {"token": text, "logprob": max(logp, LEAST_LOGP), "bytes": known}


@dataclass(frozen=True)
class Head:
    """What all parts of one reply begin with."""

    kind: str
    """`chat.completion` or `text_completion`."""
    model: str
    id: str
    created: int

    @classmethod
    def new(cls, kind: str, model: str) -> "Head":
        """A head with an id of its own."""
        start = "chatcmpl" if kind == "chat.completion" else "cmpl"
        return cls(kind, model, f"{start}-{uuid.uuid4().hex}", int(time.time()))

    def reply(self, **rest: Any) -> dict[str, Any]:
        """A whole reply."""
        return {
            "id": self.id,
            "object": self.kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": None,
            **rest,
        }

    def chunk(self, **rest: Any) -> dict[str, Any]:
        """A piece of a streamed reply."""
        suffix = ".chunk" if self.kind == "chat.completion" else ""
        return {**self.reply(**rest), "object": self.kind + suffix}


def usage(orders: Sequence[Order], num_generated: int, num_known: int) -> dict[str, Any]:
    """The numbers of tokens; `num_known` of the prompts' did not have to be read anew."""
    prompt = sum(len(order.prompt) for order in orders)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": num_generated,
        "total_tokens": prompt + num_generated,
        "prompt_tokens_details": {"cached_tokens": num_known},
    }


def chat_choice(answer: Portion, *, logprobs: bool, ids: bool) -> dict[str, Any]:
    """One answer of a chat."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
    if answer.calls:
        message["content"] = answer.text.strip() or None
        message["tool_calls"] = [
            {key: part for key, part in call.items() if key != "index"} for call in answer.calls
        ]
    return {
        "index": answer.index,
        "message": message,
        "finish_reason": answer.finish,
        "logprobs": {"content": answer.logprobs, "refusal": None} if logprobs else None,
        **({"token_ids": answer.ids} if ids else {}),
    }


def chat_delta(delta: Portion, *, logprobs: bool, ids: bool) -> dict[str, Any]:
    """What a token adds to an answer of a chat."""
    added: dict[str, Any] = {"content": delta.text} if delta.text else {}
    if delta.calls:
        added["tool_calls"] = delta.calls
    return {
        "index": delta.index,
        "delta": added,
        "finish_reason": delta.finish,
        "logprobs": {"content": delta.logprobs, "refusal": None} if logprobs and delta.logprobs else None,
        **({"token_ids": delta.ids} if ids else {}),
    }


def completion_choice(answer: Portion, *, top: int | None, ids: bool) -> dict[str, Any]:
    """One answer of a completion, whole or what a token adds to it."""
    return {
        "index": answer.index,
        "text": answer.text,
        "finish_reason": answer.finish,
        "logprobs": None if top is None else _old_logprobs(answer.logprobs, top),
        **({"token_ids": answer.ids} if ids else {}),
    }


def _old_logprobs(found: Sequence[dict[str, Any]], top: int) -> dict[str, Any]:
    """As completions have them: lists side by side."""
    return {
        "tokens": [one["token"] for one in found],
        "token_logprobs": [one["logprob"] for one in found],
        "top_logprobs": [{each["token"]: each["logprob"] for each in one["top_logprobs"]} for one in found]
        if top
        else None,
        "text_offset": None,
    }
