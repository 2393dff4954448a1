"""What is done with a row that is longer than allowed. Nothing is ever cut inside a message."""

from collections.abc import Callable
from typing import Literal

from luthier.data.chat import Encoded
from luthier.data.conversation import Conversation
from luthier.errors import RowRefused

Overlong = Literal["drop", "truncate_oldest_turns", "error"]


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
    conversation: Conversation, max_length: int, encode: Callable[[Conversation], Encoded]
) -> tuple[Encoded, int]:
    """The longest end of a conversation that fits, with its system messages, and how many exchanges went.

    Raises:
        RowRefused: if its last exchange alone is too long, or nothing is left to learn.
    """
    leading, groups = exchanges(conversation)
    last = max(i for i, group in enumerate(groups) if any(conversation.learns(number) for number in group))

    def attempt(num_removed: int) -> Encoded | None:
        kept = [*leading, *(number for group in groups[num_removed:] for number in group)]
        encoded = encode(conversation.part(kept))
        return encoded if len(encoded.ids) <= max_length else None

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
    return best, fits
