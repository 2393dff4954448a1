"""What makes a row unfit for a chat template: control tokens in its texts, and what the template drops from it."""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from luthier.data.conversation import Conversation, Message, describe
from luthier.data.form import MAX_MESSAGES, SENTINEL, SENTINEL_START, reasoning_of
from luthier.data.marking import RESERVED, Marked
from luthier.data.probe import Literals
from luthier.data.template import TemplateProgram
from luthier.data.tokens import any_of
from luthier.errors import RowRefused

_INLINE_REASONING = re.compile(r"<think>(.*?)</think>", re.DOTALL)


class TextCheck:
    """Refuses texts that would become something else.

    Args:
        control: the texts of the tokens that no row may contain.
    """

    def __init__(self, control: Iterable[str]):
        words = set(control)
        self._pattern = any_of(words)
        self._first = sorted({word[0] for word in words})

    def refuse(self, conversation: Conversation) -> None:
        """Raises RowRefused if a text of the conversation cannot be used, naming it."""
        messages = conversation.messages
        if len(messages) > MAX_MESSAGES:
            raise RowRefused(f"the row has {len(messages)} messages; {MAX_MESSAGES} is the most it can have")
        for number, message in enumerate(messages):
            for value in message.values():
                if value is not None and (not isinstance(value, str) or self._looks_odd(value)):
                    self._refuse_in(value, describe(messages, number))
        if conversation.tools:
            self._refuse_in(conversation.tools, "`tools`")
        if conversation.template_args:
            self._refuse_in(conversation.template_args, "`chat_template_kwargs`")

    def _looks_odd(self, text: str) -> bool:
        """A fast look that most texts pass."""
        return not text.isascii() or SENTINEL_START in text or any(first in text for first in self._first)

    def _refuse_in(self, value: Any, place: str) -> None:
        for text in _texts(value):
            if not self._looks_odd(text):
                continue
            if found := self._pattern.search(text):
                raise RowRefused(
                    f"{place} contains {found[0]!r}, which the tokenizer reads as a control token"
                )
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


def refuse_homeless(messages: Sequence[Message], literals: Literals) -> None:
    """Refuses what the template would drop from any row."""
    for number, message in enumerate(messages):
        if message.get("tool_calls") and not literals.writes_calls:
            raise RowRefused(f"the template has no place for the tool calls of {describe(messages, number)}")
        if not literals.writes_reasoning and (reasoning_of(message) or "").strip():
            raise RowRefused(f"the template has no place for the reasoning of {describe(messages, number)}")


def count_left_out(messages: Sequence[Message], text: str) -> int:
    """How many earlier answers lost their reasoning to the template.

    Many templates drop it on purpose once the conversation goes on. In the last answer it is what is to be
    learned, so there a row without it is refused.
    """
    lost = answer = -1
    count = 0
    for number, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        answer = number
        if any(part not in text for part in _reasoning_parts(message)):
            lost = number
            count += 1
    if count and lost == answer:
        raise RowRefused(f"the template leaves out the reasoning of {describe(messages, lost)}")
    return count


def _reasoning_parts(message: Message) -> list[str]:
    """The reasoning of a message, given in a field of its own or between tags in its content."""
    content = message.get("content")
    inline = _INLINE_REASONING.findall(content) if isinstance(content, str) and "<think>" in content else []
    return [part.strip() for part in (reasoning_of(message) or "", *inline) if part.strip()]


def refuse_unseen_tools(
    tools: list[Any],
    marked: Marked,
    program: TemplateProgram,
    messages: Sequence[Message],
    variables: dict[str, Any],
) -> None:
    """Refuses tools that the template does not show to the model. The messages are as the template reads them."""
    inner = [tool.get("function", tool) for tool in tools]
    found = [one.get("name") for one in inner if isinstance(one, dict)]
    names = [name for name in found if isinstance(name, str)]
    before = marked.text[: marked.regions[0].start] if marked.regions else ""
    if all(name in before for name in names):
        return
    try:
        without = program.render(messages, {**variables, "tools": None})
    except RowRefused:
        without = ""
    for name in names:
        if marked.text.count(name) <= without.count(name):
            raise RowRefused(f"the template does not show the tool {name!r} to the model")
