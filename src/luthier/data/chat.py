"""Conversations to tokens and targets, with the model's own chat template.

Each conversation is rendered with the template, tokenised once, and its targets are the tokens inside the
assistant's spans (spans.py). Nothing is cut, added or guessed: a row that does not work out is refused.

Text that a control token is written with (`<|im_end|>` in a question) would become that token and change
who says what, so such a row is refused too. `<think>` and `</think>` are allowed.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.checks import TextCheck, count_left_out, refuse_homeless, refuse_unseen_tools
from luthier.data.conversation import Conversation, Message
from luthier.data.form import Form, adapt, twin
from luthier.data.learn import Lesson, lesson_of
from luthier.data.marking import Marked
from luthier.data.probe import PROBE_TOOL, Literals, ask
from luthier.data.spans import Endings, learned_spans, refuse_lost
from luthier.data.template import TemplateProgram
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
MOST_LITERALS = 256
"""Variables of rows for which it is remembered what the template writes with them."""
THINKING_SWITCHES = ("enable_thinking", "thinking", "enable_reasoning", "reasoning")


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
        now: what the clock says that templates can read (`strftime_now`); None: what it says now, for all rows.

    Raises:
        DataError: if there is no template, or not a valid one. Where the assistant's part of its text cannot
            be found, `render` and `encode` raise it, for every row alike.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerFast",
        source: str | None = None,
        template_args: dict[str, Any] | None = None,
        now: datetime | None = None,
    ):
        self.tokenizer = tokenizer
        self.now = now or datetime.now()
        self.template_args = dict(template_args or {})
        self._given = source
        plain, with_tools = _sources(tokenizer, source)
        self._program = TemplateProgram(plain, self.now)
        self._tool_program = self._program if with_tools == plain else TemplateProgram(with_tools, self.now)
        self.encoder = TokenEncoder(tokenizer)
        self._special: dict[str, Any] = dict(tokenizer.special_tokens_map)
        self._literals: dict[tuple[bool, str], Literals] = {}
        self._added = [token for token in self.encoder.added if not token.isspace()]
        self._endings = Endings(any_of(self._added), _text_of(tokenizer.eos_token))

    def __reduce__(self) -> tuple[Any, ...]:
        """Other processes are sent what it was made from."""
        return ChatTemplate, (self.tokenizer, self._given, self.template_args, self.now)

    @cached_property
    def _main(self) -> Literals:
        """The literals of the template with the run's variables; not needed to write prompts."""
        try:
            return self._literals_for(self._program, self.template_args)
        except RowRefused as refusal:
            raise DataError(f"the model's chat template cannot be used to train: {refusal}") from refusal

    @cached_property
    def _texts(self) -> TextCheck:
        """Finds the tokens that no row may contain: special ones, and others that the template writes."""
        written = self._main.text + self._main.generation
        control = {token for token in self._added if self.encoder.added[token] or token in written}
        return TextCheck(control - _REASONING_TAGS)

    @cached_property
    def _prompt_texts(self) -> TextCheck:
        """The same for prompts, which a template that cannot be trained with can still write."""
        try:
            return self._texts
        except DataError:
            control = {token for token in self._added if self.encoder.added[token]}
            return TextCheck(control - _REASONING_TAGS)

    def refuse_control_tokens(self, conversation: Conversation) -> None:
        """Refuses texts that would become control tokens in a prompt, as training refuses such rows.

        Raises:
            RowRefused: naming the message and the text.
        """
        self._prompt_texts.refuse(conversation)

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
        return not self._main.in_loop or bool(
            self._endings.tokens.search(self._main.ending) or self._endings.beyond(self._main)
        )

    def render(self, what: Conversation | Lesson) -> Rendered:
        """The text of a conversation and the spans to learn: the assistant's answers, if nothing else is said.

        Raises:
            RowRefused: if the template refuses it, or what is to be learned is not certain.
        """
        lesson = what if isinstance(what, Lesson) else lesson_of(what)
        conversation, messages = lesson.conversation, lesson.conversation.messages
        self._texts.refuse(conversation)
        program = self._program_for(conversation.tools)
        literals = self._literals_for(program, self._arguments(conversation.template_args))
        refuse_homeless(messages, literals)
        variables = self._variables(conversation.tools, conversation.template_args)
        marked = program.render_marked(adapt(messages, literals.form), variables)
        # The twin's text is never used, so there is nothing to check in it.

        def around() -> Marked:
            return program.render_marked(adapt(twin(messages, lesson.weights), literals.form), variables)

        spans = learned_spans(lesson, marked, around, literals, self._endings)
        if conversation.tools:
            refuse_unseen_tools(
                conversation.tools, marked, program, adapt(messages, literals.form), variables
            )
        return Rendered(marked.text, spans, count_left_out(messages, marked.text))

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
        self._texts.refuse(conversation)
        tools, own = conversation.tools, conversation.template_args
        program = self._program_for(tools)
        literals = self._literals_for(program, self._arguments(own))
        variables = {**self._variables(tools, own), "add_generation_prompt": True}
        messages = adapt(conversation.messages, literals.form)
        marked = program.render_marked(messages, variables)
        refuse_lost(conversation.messages, marked)
        if tools:
            refuse_unseen_tools(tools, marked, program, messages, variables)
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
        return {**self.template_args, **own} if own else self.template_args

    def _variables(self, tools: list[Any] | None, own: dict[str, Any]) -> dict[str, Any]:
        always = {"tools": tools, "documents": None, "add_generation_prompt": False}
        return {**self._special, **self._arguments(own), **always}

    def _literals_for(self, program: TemplateProgram, arguments: dict[str, Any]) -> Literals:
        own = arguments is not self.template_args
        key = (
            program is self._tool_program,
            json.dumps(arguments, sort_keys=True, default=repr) if own else "",
        )
        found = self._literals.pop(key, None) or self._probed(program, arguments)
        self._literals[key] = found  # the last one is the newest
        if len(self._literals) > MOST_LITERALS:
            del self._literals[next(iter(self._literals))]
        return found

    def _probed(self, program: TemplateProgram, arguments: dict[str, Any]) -> Literals:
        try:
            return ask(program, self._variables(None, arguments))
        except RowRefused as refusal:
            try:  # a template for rows with tools may not work without any
                return ask(program, self._variables([PROBE_TOOL], arguments))
            except RowRefused:
                raise refusal from None


def _sources(tokenizer: "PreTrainedTokenizerFast", source: str | None) -> tuple[str, str]:
    """The template for conversations without tools and the one for those with tools."""
    if source is not None:
        return source, source
    own: Any = tokenizer.chat_template
    if isinstance(own, list):  # as old files have it
        own = {one["name"]: one["template"] for one in own}
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
