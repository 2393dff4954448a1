"""What formats that hold conversations have in common: system prompts, tools, and questions without an answer."""

from collections.abc import Sequence
from typing import Any

from luthier.data.calls import checked_tools, wrapped_tools
from luthier.data.content import Conversation, Prompt
from luthier.data.conversation import checked_messages, checked_template_args, conversation_from
from luthier.data.turns import Tags, one_or_more_turns, turns_in_text
from luthier.data.values import from_json, in_words
from luthier.errors import RowRefused

CHAT_COLUMNS = ("system", "system_prompt", "tools", "functions", "chat_template_kwargs")
"""Columns that any conversation may have besides its messages."""
BESIDE = ("input", "context", "history")
"""Columns that belong to a question in one text."""
INSTRUCTION_COLUMNS = (*BESIDE, *CHAT_COLUMNS)
"""Columns that go with an `instruction`, or another question in one text."""


def conversation_of(
    turns: list[Any], record: dict[str, Any], weights: Sequence[float] | None = None
) -> Conversation:
    """A checked conversation with the tools and variables of its row. Raises RowRefused."""
    return conversation_from(turns, tools_of(record), record.get("chat_template_kwargs"), weights)


def prompt_of(turns: list[Any], record: dict[str, Any], column: str) -> Prompt:
    """A question that nobody answers, with every other column of its row. Raises RowRefused."""
    messages, _ = checked_messages(turns)
    rest = {name: value for name, value in record.items() if name != column}
    arguments = checked_template_args(record.get("chat_template_kwargs"))
    return Prompt(tuple(messages), rest, checked_tools(tools_of(record)), arguments)


def conversation_or_prompt(turns: list[Any], record: dict[str, Any], column: str) -> Conversation | Prompt:
    """A conversation; a prompt if there is nothing of an assistant in it. Raises RowRefused."""
    turns = with_system(turns, record)
    if any(isinstance(turn, dict) and turn.get("role") == "assistant" for turn in turns):
        return conversation_of(turns, record)
    return prompt_of(turns, record, column)


def tools_of(record: dict[str, Any]) -> Any:
    """The tools of a row: `tools`, or `functions` as they were called before."""
    if not record.get("functions"):
        return record.get("tools")
    if record.get("tools"):
        raise RowRefused("the row has both `tools` and `functions`; keep one of them")
    return wrapped_tools(record["functions"])


def with_system(turns: list[Any], record: dict[str, Any]) -> list[Any]:
    """The messages with the row's own system prompt in front.

    Raises:
        RowRefused: if it is not text, or a system message says something else.
    """
    given = [name for name in ("system", "system_prompt") if record.get(name)]
    if not given:
        return turns
    system = record[given[0]]
    if not isinstance(system, str):
        raise RowRefused(f"`{given[0]}` is {in_words(system)}, not text")
    if len(given) > 1 and record[given[1]] != system:
        raise RowRefused("`system` and `system_prompt` say different things; keep one of them")
    first = turns[0] if turns and isinstance(turns[0], dict) else {}
    if first.get("role") != "system":
        return [{"role": "system", "content": system}, *turns]
    if first.get("content") != system:
        raise RowRefused(f"`{given[0]}` and the system message of the conversation say different things")
    return turns


def question_turns(record: dict[str, Any], column: str, tags: Tags) -> list[Any]:
    """What a row asks in one text or in messages; `history`, `input` and `context` belong to a text as they do to an
    instruction.

    Raises:
        RowRefused: if they stand beside messages, or something cannot be used.
    """
    value = record[column]
    if isinstance(value, str) and turns_in_text(value) is None and any(map(record.get, BESIDE)):
        return instruction_turns(record, column)
    refuse_beside(record, column)
    return with_system(one_or_more_turns(value, tags, column, "user"), record)


def refuse_beside(record: dict[str, Any], column: str) -> None:
    """Raises RowRefused if columns that belong to a question in one text stand beside messages."""
    for name in BESIDE:
        if record.get(name) and record[name] != "[]":
            raise RowRefused(
                f"the row has `{name}` beside the messages of `{column}`, and it is not known where it belongs; put "
                f"it into the messages, or map `{name}` to `-` in `columns` to leave it out"
            )


def instruction_turns(record: dict[str, Any], column: str = "instruction") -> list[Any]:
    """An Alpaca row up to its last question: system prompt, history, instruction and input. Raises RowRefused."""
    parts = [_text_or_nothing(record, column)]
    parts += [_text_or_nothing(record, name) for name in ("input", "context") if record.get(name)]
    question = "\n".join(part for part in parts if part)
    if not question:
        raise RowRefused(f"`{column}` and `input` are both empty, so nothing is asked")
    turns = [*_history(record.get("history")), {"role": "user", "content": question}]
    return with_system(turns, record)


def _text_or_nothing(record: dict[str, Any], column: str) -> str:
    value = record.get(column)
    if not isinstance(value, str | None):
        raise RowRefused(f"`{column}` is {in_words(value)}, not text")
    return value or ""


def _history(history: Any) -> list[Any]:
    if isinstance(history, str) and history.strip():
        history = from_json(history, "`history`")
    if not history:
        return []
    if not isinstance(history, list):
        raise RowRefused(f"`history` is {in_words(history)}, not a list of [question, answer]")
    turns = []
    for number, pair in enumerate(history, start=1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowRefused(f"exchange {number} of `history` is not a list of a question and its answer")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns
