"""Which messages of a conversation are learned, and how much each of them counts."""

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.data.conversation import Conversation
from luthier.errors import RowRefused

Learn = str | tuple[str, ...]
"""`answers`, `last`, `all`, or the roles whose turns are learned."""


@dataclass(frozen=True)
class Lesson:
    """A conversation with what is to be learned from it."""

    conversation: Conversation
    weights: tuple[float, ...]
    """One value a message: how much each token of its turn counts; 0: it is context."""
    everything: bool = False
    """Headers and all else that the template writes is learned too; `weights` then only takes away."""

    def part(self, keep: Sequence[int]) -> "Lesson":
        """The same lesson with only the messages at these indices."""
        return Lesson(self.conversation.part(keep), tuple(self.weights[i] for i in keep), self.everything)


def lesson_of(conversation: Conversation, learn: Learn = "answers") -> Lesson:
    """What a rule (`data.learn`) makes of a conversation. A message's own weight can only take away.

    Raises:
        RowRefused: if nothing is left to learn.
    """
    messages = conversation.messages
    own = [conversation.weight(number) for number in range(len(messages))]
    roles = {message["role"] for message in messages} if learn == "all" else {"assistant"}
    wanted = roles if isinstance(learn, str) else set(learn)
    weights = [
        weight if message["role"] in wanted else 0.0 for weight, message in zip(own, messages, strict=True)
    ]
    learned = [number for number, weight in enumerate(weights) if weight]
    if not learned:
        raise RowRefused(_nothing(learn))
    if learn == "last":
        weights = [weight if number == learned[-1] else 0.0 for number, weight in enumerate(weights)]
    return Lesson(conversation, tuple(weights), everything=learn == "all")


def _nothing(learn: Learn) -> str:
    if isinstance(learn, str):
        return "all targets masked: every assistant message is marked as not to be learned"
    return f"all targets masked: no message of the roles in data.learn ({', '.join(learn)}) is to be learned"
