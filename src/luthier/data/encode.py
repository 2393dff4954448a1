"""Contents of rows to examples of tokens, whatever their kind, with every row's fate.

A conversation goes through the model's chat template (`encode_chat.py`), text goes as it is (`encode_text.py`).
Texts of many rows are tokenised together.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from tokenizers import Encoding

from luthier.data.chat import THINKING_SWITCHES, ChatTemplate
from luthier.data.content import Answers, Content, Labelled, Pieces, Prompt, Related, Steps, Text, TokenIds
from luthier.data.conversation import Conversation
from luthier.data.draft import Draft, EncodedRow, EncodeOptions, sequences, too_long
from luthier.data.encode_chat import ChatDrafts
from luthier.data.encode_scored import ScoredDrafts
from luthier.data.encode_text import TextDrafts
from luthier.data.tokens import TokenEncoder, Tokens
from luthier.errors import DataError, RowRefused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

__all__ = ["EncodeOptions", "EncodedRow", "RowEncoder", "RowTooLong"]

_PORTION = 64
"""Rows that are tokenised together."""
_VERSION = 5  # counted up when the same row gives other tokens than before


class RowTooLong(DataError):
    """A row is too long and `data.overlong` is `error`. `index` says which of the contents it is."""

    def __init__(self, index: int, text: str):
        super().__init__(text)
        self.index = index


class RowEncoder:
    """Turns contents into examples.

    Args:
        tokenizer: the model's.
        template: its chat template. Without one, conversations cannot be used, but text can.
        options: what is learned and how long a row may be.
        no_template: what to tell a person who gives conversations although there is no template.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        template: ChatTemplate | None,
        options: EncodeOptions,
        *,
        no_template: str = "",
    ):
        self.options = options
        self._tokenizer: Any = tokenizer
        self._template = template
        self._encoder = TokenEncoder(tokenizer) if template is None else template.encoder
        self._text = TextDrafts(tokenizer, self._encoder, options)
        self._scored = ScoredDrafts(tokenizer, options)
        self._chat = None if template is None else ChatDrafts(template, options)
        self._no_template = no_template or "the model has no chat template; give one in data.template"

    def encode(self, contents: Sequence[Content]) -> list[EncodedRow | RowRefused]:
        """What becomes of each content, in order.

        Raises:
            DataError: if there is no template for a conversation, or a row is too long and that is an error.
        """
        result: list[EncodedRow | RowRefused] = []
        waiting: tuple[list[Draft | RowRefused], list[str], Future[list[Encoding]]] | None = None
        # While one portion is tokenised, outside of Python, the next one is rendered.
        with ThreadPoolExecutor(1) as thread:
            for start in range(0, len(contents), _PORTION):
                drafts = [self._draft(content) for content in contents[start : start + _PORTION]]
                texts = [text for draft in drafts if isinstance(draft, Draft) for text in draft.texts]
                begun = drafts, texts, thread.submit(self._encoder.start, texts)
                if waiting is not None:
                    self._finish_all(waiting, result)
                waiting = begun
            if waiting is not None:
                self._finish_all(waiting, result)
        return result

    @property
    def key(self) -> str:
        """Names everything that changes the result, for a cache: template, tokenizer, options, this code."""
        template = self._template
        source = "" if template is None else template.source
        parts = {
            "version": _VERSION,
            "options": asdict(self.options),
            "template": source,
            "template_args": {} if template is None else template.template_args,
            "special_tokens": self._tokenizer.special_tokens_map,
            "tokenizer": self._tokenizer.backend_tokenizer.to_str(),
            "now": template.now.date().isoformat() if template and "strftime_now" in source else None,
        }
        text = json.dumps(parts, sort_keys=True, default=repr)
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should be told once about these options and this template."""
        template, options = self._template, self.options
        if template is None:
            return ()
        notes = []
        if options.thinking is not None and not template.thinking_switches(options.thinking):
            given = [name for name in template.template_args if name in THINKING_SWITCHES]
            why = f"data.template_args sets {given[0]}" if given else "the chat template has no switch for it"
            notes.append(f"data.thinking changes nothing: {why}")
        return tuple(notes)

    def pieces(self, row: EncodedRow) -> list[list[tuple[str, bool]]]:
        """Each sequence of a row as text in pieces, each with whether it is learned, to show it to people."""
        return [
            self._encoder.pieces(ids, weights)
            for example in row.examples
            for ids, weights in sequences(example)
        ]

    def _draft(self, content: Content) -> Draft | RowRefused:
        try:
            return self._maker(content)(content)
        except RowRefused as refusal:
            return refusal

    def _maker(self, content: Content) -> Callable[[Any], Draft]:
        text = self._text
        if isinstance(content, Text):
            return text.text
        if isinstance(content, TokenIds):
            return text.token_ids
        if isinstance(content, Pieces):
            return text.pieces
        if isinstance(content, Labelled):
            return self._scored.labelled
        if isinstance(content, Related):
            return self._scored.related
        if self._chat is None:
            raise DataError(self._no_template)
        chat = self._chat
        kinds: dict[type, Callable[[Any], Draft]] = {
            Conversation: chat.conversation,
            Answers: chat.answers,
            Steps: chat.steps,
            Prompt: chat.prompt,
        }
        return kinds[type(content)]

    def _finish_all(
        self,
        begun: "tuple[list[Draft | RowRefused], list[str], Future[list[Encoding]]]",
        result: list[EncodedRow | RowRefused],
    ) -> None:
        drafts, texts, future = begun
        tokens = iter(self._encoder.tokens(texts, future.result()))
        for draft in drafts:
            result.append(self._finish(len(result), draft, tokens))

    def _finish(
        self, number: int, draft: Draft | RowRefused, tokens: Iterator[Tokens]
    ) -> EncodedRow | RowRefused:
        if isinstance(draft, RowRefused):
            return draft
        own = [next(tokens) for _ in draft.texts]
        try:
            row = draft.whole(own)
            length = max(len(example) for example in row.examples)
            if length <= self.options.max_length:
                return row
            if self.options.overlong == "error":
                text = f"{too_long(length, self.options)}; raise it, or choose another data.overlong"
                raise RowTooLong(number, text)
            return draft.shorten(row, length)
        except RowRefused as refusal:
            return refusal
