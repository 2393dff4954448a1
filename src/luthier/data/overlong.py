"""What is done with a conversation that is longer than allowed.

Whole exchanges go, or the end of the last answer's text; headers, ends of turns and tool calls stay whole.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from luthier.data.chat import Encoded
from luthier.data.conversation import Conversation, Message
from luthier.data.learn import Lesson
from luthier.errors import RowRefused

Overlong = Literal["drop", "truncate_oldest_turns", "truncate_response", "split", "error"]

_REASONING = re.compile(r"<think>.*?</think>|<think>.*", re.DOTALL)


@dataclass(frozen=True)
class Shortened:
    """What is left of a conversation, and what was done to it, for the ledger."""

    parts: tuple[Encoded, ...]
    what: str


Encode = Callable[[Lesson], Encoded]


def exchanges(conversation: Conversation) -> tuple[list[int], list[list[int]]]:
    """The leading system messages, and the exchanges after them, as indices of messages.

    An exchange starts at a user's message that follows anything but another user's message.
    """
    roles = [message["role"] for message in conversation.messages]
    num_leading = next((i for i, role in enumerate(roles) if role not in ("system", "developer")), len(roles))
    groups: list[list[int]] = []
    for number in range(num_leading, len(roles)):
        starts = roles[number] == "user" and roles[number - 1 : number] != ["user"]
        if starts or not groups:
            groups.append([])
        groups[-1].append(number)
    return list(range(num_leading)), groups


def without_oldest(
    lesson: Lesson, max_length: int, encode: Encode, *, keep_learned: bool = False
) -> Shortened:
    """The longest end of a conversation that fits, with its system messages.

    With `keep_learned`, only exchanges before the first that is learned can go.

    Raises:
        RowRefused: if its last exchange alone is too long, or nothing is left to learn.
    """
    leading, groups = exchanges(lesson.conversation)
    last = _learned_groups(lesson, groups)[0 if keep_learned else -1]

    def attempt(num_removed: int) -> Encoded | None:
        return _fitting(lesson, leading, groups[num_removed:], max_length, encode)

    best = attempt(last)
    if best is None:
        raise RowRefused(f"the row is longer than {max_length} tokens, and so is its last exchange alone")
    fits, too_long = last, 0
    while fits - too_long > 1:
        middle = (fits + too_long) // 2
        encoded = attempt(middle)
        if encoded is None:
            too_long = middle
        else:
            fits, best = middle, encoded
    return Shortened((best,), f"its {fits} oldest exchanges are left out")


def split(lesson: Lesson, max_length: int, encode: Encode) -> Shortened:
    """The conversation as several: each has the system messages and as many of the exchanges as fit.

    Every exchange is in one of them, so every answer is learned once, and the system messages with the first. One
    that is too long alone is left out.

    Raises:
        RowRefused: if none of the exchanges with something to learn fits.
    """
    leading, groups = exchanges(lesson.conversation)
    wanted = set(_learned_groups(lesson, groups))
    weights = (0.0 if number in leading else weight for number, weight in enumerate(lesson.weights))
    later = replace(lesson, weights=tuple(weights))
    parts: list[Encoded] = []
    left_out = first = 0
    while first < len(groups):
        learned = next((i for i in range(first, len(groups)) if i in wanted), None)
        if learned is None:
            break
        found = None
        while found is None and first <= learned:
            found = _longest(
                later if parts else lesson, leading, groups, (first, learned), max_length, encode
            )
            first += found is None
        if found is None:
            left_out += 1
            continue
        encoded, first = found
        parts.append(encoded)
    if not parts:
        raise RowRefused(f"the row is longer than {max_length} tokens, and so is each of its exchanges alone")
    missing = f"; {left_out} exchanges that are longer alone are left out" if left_out else ""
    return Shortened(tuple(parts), f"it is split into {len(parts)} rows{missing}")


def without_end_of_answer(
    lesson: Lesson, max_length: int, encode: Encode, length: int, token_ends: Callable[[str], Sequence[int]]
) -> Shortened:
    """The conversation with the end of its last answer's text cut off, between two tokens.

    Args:
        lesson: the conversation, which has `length` tokens.
        max_length: how many it may have.
        encode: gives the tokens of a conversation.
        length: how many tokens it has now.
        token_ends: gives the characters at which the tokens of a text end.

    Raises:
        RowRefused: if it is too long even without that text.
    """
    number = max(i for i, weight in enumerate(lesson.weights) if weight)
    message = lesson.conversation.messages[number]
    text = message.get("content") or ""
    least = _least(text, message)
    ends = [end for end in token_ends(text) if end >= least]
    kept, over = len(ends) - 1, length - max_length
    while over > 0 and kept > 0:
        kept = max(kept - over, 0)
        end = ends[kept]
        encoded = encode(_cut(lesson, number, text[:end].rstrip()))
        over = len(encoded.ids) - max_length
        if over <= 0:
            what = f"the last {len(text) - end} characters of its last answer are left out"
            return Shortened((encoded,), what)
    raise RowRefused(
        f"the row is longer than {max_length} tokens, and cutting the text of its last answer does not help"
    )


def _learned_groups(lesson: Lesson, groups: list[list[int]]) -> list[int]:
    found = [i for i, group in enumerate(groups) if any(lesson.weights[number] for number in group)]
    if not found:
        raise RowRefused("only its leading system messages are learned, and these cannot be cut")
    return found


def _fitting(
    lesson: Lesson, leading: list[int], groups: list[list[int]], max_length: int, encode: Encode
) -> Encoded | None:
    kept = [*leading, *(number for group in groups for number in group)]
    encoded = encode(lesson.part(kept))
    return encoded if len(encoded.ids) <= max_length else None


def _longest(
    lesson: Lesson,
    leading: list[int],
    groups: list[list[int]],
    start: tuple[int, int],
    max_length: int,
    encode: Encode,
) -> tuple[Encoded, int] | None:
    """The longest run of exchanges from the first on that fits and has the learned one in it, and where it ends."""
    first, learned = start
    best = _fitting(lesson, leading, groups[first : learned + 1], max_length, encode)
    if best is None:
        return None
    fits, too_long = learned + 1, len(groups) + 1
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        encoded = _fitting(lesson, leading, groups[first:middle], max_length, encode)
        if encoded is None:
            too_long = middle
        else:
            fits, best = middle, encoded
    return best, fits


def _least(text: str, message: Message) -> int:
    """How many characters of an answer must stay: its reasoning and tool calls, or one character."""
    reasoning = [found.end() for found in _REASONING.finditer(text)]
    start = reasoning[-1] if reasoning else 0
    if message.get("tool_calls"):
        return start
    return start + len(text[start:]) - len(text[start:].lstrip()) + 1


def _cut(lesson: Lesson, number: int, text: str) -> Lesson:
    messages: list[dict[str, Any]] = list(lesson.conversation.messages)
    messages[number] = {**messages[number], "content": text}
    return replace(lesson, conversation=replace(lesson.conversation, messages=messages))
