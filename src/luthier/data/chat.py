"""Conversations to tokens and targets, with the model's own chat template.

Each conversation is rendered with the template, tokenised once, and its targets are the tokens inside the
assistant's spans (spans.py). Nothing is cut, added or guessed: a row that does not work out is refused.

Text that a control token is written with (`<|im_end|>` in a question) would become that token and change
who says what, so such a row is refused too. `<think>` and `</think>` are allowed.
"""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.conversation import Conversation, Message, describe
from luthier.data.form import MAX_MESSAGES, SENTINEL, Form, adapt, reasoning_of, twin
from luthier.data.learn import Lesson, lesson_of
from luthier.data.probe import Literals, ask
from luthier.data.spans import Endings, learned_spans, refuse_lost
from luthier.data.template import RESERVED, TemplateProgram
from luthier.data.tokens import (
    TokenEncoder,
    Tokens,
    WeightedSpan,
    any_of,
    last_learned,
    mark_weights,
    merged_spans,
)
from luthier.errors import DataError, RowRefused

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_REASONING_TAGS = frozenset({"<think>", "</think>"})
THINKING_SWITCHES = ("enable_thinking", "thinking", "enable_reasoning", "reasoning")
_INLINE_REASONING = re.compile(r"<think>(.*?)</think>", re.DOTALL)


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, with the character spans of what is to be learned."""

    text: str
    spans: list[WeightedSpan]
    left_out: int = 0
    """Earlier answers whose reasoning the template leaves out, as it will when the model is used."""


@dataclass(frozen=True)
class Encoded:
    """A conversation as token ids, with the weight of each of them as a target; 0 where it is not learned."""

    ids: NDArray[np.int32]
    weights: NDArray[np.float32]
    text: str
    left_out: int = 0
    """Earlier answers whose reasoning the template leaves out."""

    @cached_property
    def targets(self) -> NDArray[np.bool_]:
        """True where the token is learned."""
        return self.weights > 0


class ChatTemplate:
    """The model's chat template together with its tokenizer.

    Args:
        tokenizer: a fast tokenizer.
        source: Jinja source to use instead of the tokenizer's own template.
        template_args: variables for the template, such as `{"enable_thinking": False}`.

    Raises:
        DataError: if there is no template, or not a valid one. Where the assistant's part of its text cannot
            be found, `render` and `encode` raise it, for every row alike.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        source: str | None = None,
        template_args: dict[str, Any] | None = None,
    ):
        self.tokenizer = tokenizer
        self.template_args = dict(template_args or {})
        self._given = source
        plain, with_tools = _sources(tokenizer, source)
        self._program = TemplateProgram(plain)
        self._tool_program = self._program if with_tools == plain else TemplateProgram(with_tools)
        self.encoder = TokenEncoder(tokenizer)
        self._literals: dict[tuple[bool, str], Literals] = {}
        self._added = [token for token in self.encoder.added if not token.isspace()]
        self._endings = Endings(any_of(self._added), _text_of(tokenizer.eos_token))

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes are sent what it was made from."""
        return ChatTemplate, (self.tokenizer, self._given, self.template_args)

    @cached_property
    def _main(self) -> Literals:
        """The literals of the template with the run's variables; not needed to write prompts."""
        try:
            return self._literals_for(self._program, self.template_args)
        except RowRefused as refusal:
            raise DataError(f"the model's chat template cannot be used to train: {refusal}") from refusal

    @cached_property
    def _control(self) -> re.Pattern[str]:
        """Finds the tokens that no row may contain: special ones, and others that the template writes."""
        written = self._main.text + self._main.generation
        control = {token for token in self._added if self.encoder.added[token] or token in written}
        return any_of(control - _REASONING_TAGS)

    @property
    def source(self) -> str:
        """Everything of the template that changes what is rendered, for the cache's key."""
        return json.dumps([self._program.source, self._tool_program.source])

    @property
    def generation_prompt(self) -> str:
        """What is written at the end of a conversation to ask for an answer."""
        return self._main.generation

    @property
    def closes_turns(self) -> bool:
        """Whether an answer ends with a token of its own. If not, the model does not learn when to stop."""
        return not self._main.in_loop or bool(self._endings.tokens.search(self._main.ending))

    def render(self, what: Conversation | Lesson) -> Rendered:
        """The text of a conversation and the spans to learn: the assistant's answers, if nothing else is said.

        Raises:
            RowRefused: if the template refuses it, or what is to be learned is not certain.
        """
        lesson = what if isinstance(what, Lesson) else lesson_of(what)
        conversation, messages = lesson.conversation, lesson.conversation.messages
        self._refuse_control(conversation)
        program = self._program_for(conversation.tools)
        literals = self._literals_for(program, self._arguments(conversation.template_args))
        _refuse_homeless(messages, literals)
        variables = self._variables(conversation.tools, conversation.template_args)
        marked = program.render_marked(adapt(messages, literals.form), variables)
        # The twin's text is never used, so there is nothing to check in it.
        double = adapt(twin(messages, lesson.weights), literals.form)
        around = program.render_marked(double, variables, check=False)
        spans = learned_spans(lesson, marked, around, literals, self._endings)
        if conversation.tools:
            without = program.render(adapt(messages, literals.form), {**variables, "tools": None})
            _refuse_unseen_tools(conversation.tools, marked.text, without)
        return Rendered(marked.text, spans, _left_out(messages, marked.text))

    def encode(self, what: Conversation | Lesson) -> Encoded:
        """The tokens of a conversation and which of them are targets. Raises RowRefused as `render` does."""
        rendered = self.render(what)
        return self.encoded(self.encoder.encode(rendered.text), rendered)

    def encoded(self, tokens: Tokens, rendered: Rendered) -> Encoded:
        """A rendered conversation with the tokens of its text. Raises RowRefused if nothing in it is learned."""
        weights = mark_weights(tokens, rendered.spans)
        if not weights.any():
            raise RowRefused("all targets masked: no token of this row is to be learned")
        return Encoded(tokens.ids, weights, rendered.text, rendered.left_out)

    def encode_rendered(self, rendered: Sequence[Rendered]) -> list[Encoded | RowRefused]:
        """The tokens of many rendered conversations at once, or the reason why one has none."""
        tokens = self.encoder.encode_batch([one.text for one in rendered])
        return [self._encoded_or_refusal(one, text) for one, text in zip(tokens, rendered, strict=True)]

    def _encoded_or_refusal(self, tokens: Tokens, rendered: Rendered) -> Encoded | RowRefused:
        try:
            return self.encoded(tokens, rendered)
        except RowRefused as refusal:
            return refusal

    def prompt_ids(
        self,
        messages: Sequence[Message],
        tools: list[Any] | None = None,
        template_args: dict[str, Any] | None = None,
    ) -> list[int]:
        """The ids after which the model writes the next answer, as it saw them in training."""
        return self.encoder.encode(self.prompt_text(messages, tools, template_args)).ids.tolist()

    def prompt_text(
        self,
        messages: Sequence[Message],
        tools: list[Any] | None = None,
        template_args: dict[str, Any] | None = None,
    ) -> str:
        """The text of a conversation with the generation prompt."""
        program, own = self._program_for(tools), template_args or {}
        try:
            form = self._literals_for(program, self._arguments(own)).form
        except RowRefused:  # a template that cannot be trained with can still write a prompt
            form = Form()
        return program.render(
            adapt(messages, form), {**self._variables(tools, own), "add_generation_prompt": True}
        )

    def checked_prompt(self, conversation: Conversation) -> str:
        """The text of a conversation with the generation prompt, checked as a training row is.

        Raises:
            RowRefused: if the template refuses it or leaves out a message or a tool.
        """
        self._refuse_control(conversation)
        tools, own = conversation.tools, conversation.template_args
        program, literals = (
            self._program_for(tools),
            self._literals_for(self._program_for(tools), self._arguments(own)),
        )
        variables = {**self._variables(tools, own), "add_generation_prompt": True}
        marked = program.render_marked(adapt(conversation.messages, literals.form), variables)
        refuse_lost(conversation.messages, marked)
        if tools:
            without = program.render(
                adapt(conversation.messages, literals.form), {**variables, "tools": None}
            )
            _refuse_unseen_tools(tools, marked.text, without)
        return marked.text

    def thinking_switches(self, thinking: bool | None) -> dict[str, Any]:
        """The variables that tell this template to write answers with or without thinking; it may have none."""
        if thinking is None:
            return {}
        names = self._program.variables & set(THINKING_SWITCHES)
        return {
            name: thinking for name in THINKING_SWITCHES if name in names and name not in self.template_args
        }

    def prompt_ids_of(self, encoded: Encoded) -> list[int]:
        """The ids before the last answer of a training row, with all the template wrote in front of it."""
        return encoded.ids[: last_learned(encoded.targets).start].tolist()

    def pieces(self, encoded: Encoded) -> list[tuple[str, bool]]:
        """The text of a row in pieces, each with whether it is learned, to show it to people."""
        offsets = self.encoder.encode(encoded.text).offsets
        learned = [offsets[i] for i in np.flatnonzero(encoded.targets)]
        result: list[tuple[str, bool]] = []
        done = 0
        for start, end in merged_spans((int(start), int(end)) for start, end in learned):
            result += [(encoded.text[done:start], False), (encoded.text[start:end], True)]
            done = end
        return [(text, is_learned) for text, is_learned in [*result, (encoded.text[done:], False)] if text]

    def template_messages(self, conversation: Conversation) -> list[Message]:
        """The messages as this template reads them, to hand to `apply_chat_template`."""
        program = self._program_for(conversation.tools)
        return adapt(
            conversation.messages,
            self._literals_for(program, self._arguments(conversation.template_args)).form,
        )

    def _program_for(self, tools: list[Any] | None) -> TemplateProgram:
        return self._tool_program if tools else self._program

    def _arguments(self, own: dict[str, Any]) -> dict[str, Any]:
        return {**self.template_args, **own}

    def _variables(self, tools: list[Any] | None, own: dict[str, Any]) -> dict[str, Any]:
        always = {"tools": tools, "documents": None, "add_generation_prompt": False}
        return {**self.tokenizer.special_tokens_map, **self._arguments(own), **always}

    def _literals_for(self, program: TemplateProgram, arguments: dict[str, Any]) -> Literals:
        key = program is self._tool_program, json.dumps(arguments, sort_keys=True, default=repr)
        if key not in self._literals:
            self._literals[key] = ask(program, self._variables(None, arguments))
        return self._literals[key]

    def _refuse_control(self, conversation: Conversation) -> None:
        if len(conversation.messages) > MAX_MESSAGES:
            raise RowRefused(
                f"the row has {len(conversation.messages)} messages; {MAX_MESSAGES} is the most it can have"
            )
        for number, message in enumerate(conversation.messages):
            _refuse_texts(message, describe(conversation.messages, number), self._control)
        _refuse_texts(conversation.tools, "`tools`", self._control)
        _refuse_texts(conversation.template_args, "`chat_template_kwargs`", self._control)


def _sources(tokenizer: "PreTrainedTokenizerFast", source: str | None) -> tuple[str, str]:
    """The template for conversations without tools and the one for those with tools."""
    if source is not None:
        return source, source
    own: Any = tokenizer.chat_template
    if isinstance(own, dict):
        default = own.get("default")
        if default is None:
            raise DataError(
                f"the tokenizer has several chat templates ({', '.join(own)}) and none is the default; "
                "choose one and give it as a file in data.template"
            )
        return default, own.get("tool_use", default)
    if not own:
        raise DataError(
            "the tokenizer has no chat template, so there is no telling how a conversation is written; "
            "choose an instruct model, or give a Jinja file in data.template"
        )
    return own, own


def _text_of(token: Any) -> str | None:
    return token if isinstance(token, str) and token else None


def _refuse_texts(value: Any, place: str, control: re.Pattern[str]) -> None:
    for text in _texts(value):
        if found := control.search(text):
            raise RowRefused(f"{place} contains {found[0]!r}, which the tokenizer reads as a control token")
        if found := RESERVED.search(text) or SENTINEL.search(text):
            raise RowRefused(f"{place} contains {found[0]!a}, which cannot be used in a text here")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield str(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _refuse_homeless(messages: Sequence[Message], literals: Literals) -> None:
    """Refuses what the template would drop from any row."""
    for number, message in enumerate(messages):
        if message.get("tool_calls") and not literals.writes_calls:
            raise RowRefused(f"the template has no place for the tool calls of {describe(messages, number)}")
        if (reasoning_of(message) or "").strip() and not literals.writes_reasoning:
            raise RowRefused(f"the template has no place for the reasoning of {describe(messages, number)}")


def _left_out(messages: Sequence[Message], text: str) -> int:
    """How many earlier answers lost their reasoning to the template.

    Many templates drop it on purpose once the conversation goes on. In the last answer it is what is to be
    learned, so there a row without it is refused.
    """
    answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    lost = [
        number for number in answers if any(part not in text for part in _reasoning_parts(messages[number]))
    ]
    if lost and lost[-1] == answers[-1]:
        raise RowRefused(f"the template leaves out the reasoning of {describe(messages, lost[-1])}")
    return len(lost)


def _reasoning_parts(message: Message) -> list[str]:
    """The reasoning of a message, given in a field of its own or between tags in its content."""
    content = message.get("content")
    inline = _INLINE_REASONING.findall(content) if isinstance(content, str) else []
    return [part.strip() for part in (reasoning_of(message) or "", *inline) if part.strip()]


def _refuse_unseen_tools(tools: list[Any], text: str, without: str) -> None:
    """Refuses tools that the template does not show: `without` is the text when there are none."""
    for tool in tools:
        inner = tool.get("function", tool)
        name = inner.get("name") if isinstance(inner, dict) else None
        if isinstance(name, str) and text.count(name) <= without.count(name):
            raise RowRefused(f"the template does not show the tool {name!r} to the model")
