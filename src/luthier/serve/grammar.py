"""Answers that fit a JSON schema: what cannot go on to such an answer is never drawn (library llguidance).

The schema becomes a grammar over the tokens of the model's own tokenizer. Before each token the grammar says which ones
may follow; the others' logits are minus infinity. Once the JSON is whole, only the tokens that end an answer are left.

Shape suffixes: V vocabulary.
"""

import json
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.models.inference import Words
from luthier.rollout.live import Rule
from luthier.serve.failures import Refusal
from luthier.serve.requests import ResponseFormat

NEEDED = "llguidance"
_ANY_OBJECT: dict[str, Any] = {"type": "object"}
_WRITTEN: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""As models write JSON in one line: white space of any length would let an answer go on without saying anything."""


class Grammars:
    """Makes the rules of answers of one model. The vocabulary is read once, when it is first needed.

    Args:
        words: the model's tokenizer, what ends an answer, and how many entries its logits have.
    """

    def __init__(self, words: Words):
        self._words = words
        self._vocabulary: Any = None

    def rules(self, format: ResponseFormat) -> Callable[[], Rule] | None:
        """Makes the rule of one answer of this format; None: any text is right.

        Raises:
            Refusal: the library is not there, or it cannot make a grammar of the schema.
        """
        if format.type == "text":
            return None
        if find_spec(NEEDED) is None:
            raise Refusal(
                400,
                "this server cannot hold answers to a schema: it lacks the package llguidance (luthier[serve])",
                "no_grammars",
                "response_format",
            )
        schema = format.json_schema.schema_ if format.json_schema else _ANY_OBJECT
        matcher, ends = self._matcher(schema), self._words.eos_token_ids
        return lambda: JsonRule(matcher.deep_copy(), ends)

    def _matcher(self, schema: dict[str, Any]) -> Any:
        """What follows an answer of this schema, at its beginning: made once, copied for each answer."""
        import llguidance
        import llguidance.hf

        if self._vocabulary is None:
            ends = list(self._words.eos_token_ids)
            self._vocabulary = llguidance.hf.from_tokenizer(
                self._words.tokenizer, n_vocab=self._size(), eos_token=ends
            )
        try:
            grammar = llguidance.LLMatcher.grammar_from_json_schema(json.dumps(schema), defaults=_WRITTEN)
            fault = llguidance.LLMatcher.validate_grammar(grammar, self._vocabulary)
        except (ValueError, RecursionError) as error:
            fault, grammar = str(error), ""
        if not fault:
            matcher = llguidance.LLMatcher(self._vocabulary, grammar, log_level=0)
            matcher.compute_bitmask()  # what would already fail at the first token
            if not matcher.is_error():
                return matcher
            fault = matcher.get_error()
        message = f"the schema cannot be held to: {_first_line(fault)}"
        raise Refusal(400, message, "invalid_schema", "response_format.json_schema")

    def _size(self) -> int:
        """Entries of the vocabulary: no fewer than the tokenizer has."""
        return max(self._words.num_tokens, len(self._words.tokenizer))


def _first_line(text: str) -> str:
    return next(iter(text.splitlines()), "")[:200]


class JsonRule:
    """What one answer may go on with.

    Args:
        matcher: at the answer's beginning; the rule's own.
        ends: the tokens that end an answer.
    """

    def __init__(self, matcher: Any, ends: Iterable[int]):
        self._matcher, self._ends = matcher, list(ends)

    def restrict(self, logits_V: Tensor) -> str:
        allowed_V = self._allowed(len(logits_V)).to(logits_V.device)
        logits_V.masked_fill_(~allowed_V, -torch.inf)
        return self._fault()

    def take(self, token: int) -> str:
        self._matcher.consume_token(token)
        return self._fault()

    def _fault(self) -> str:
        """Whether following the schema took more than the library allows for one token, which only shows under way."""
        if not self._matcher.is_error():
            return ""
        return f"its schema is too complex to be followed: {_first_line(self._matcher.get_error())}"

    def _allowed(self, num: int) -> Tensor:
        """Which tokens may follow, [V]. A grammar that is done only lets the answer end."""
        if self._matcher.is_stopped():
            allowed_V = torch.zeros(num, dtype=torch.bool)
            allowed_V[self._ends] = True
            return allowed_V
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        allowed = np.unpackbits(bits, bitorder="little")[:num].astype(bool)
        allowed_V = torch.zeros(num, dtype=torch.bool)
        allowed_V[: len(allowed)] = torch.from_numpy(allowed)
        allowed_V[self._ends] = self._matcher.is_accepting()
        if not bool(allowed_V.any()):
            allowed_V[self._ends] = True
        return allowed_V
