"""What generates for a server, whatever it is: orders go in, tokens come out one by one, and an order can be dropped.

An engine has a thread or process of its own; everything here is called from the server's event loop.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from luthier.errors import LuthierError
from luthier.rollout.live import Order
from luthier.rollout.rows import Finish

__all__ = ["Busy", "Engine", "EngineFailed", "Load", "Order", "Piece", "Ticket", "TooComplex", "TooLarge"]


class Busy(LuthierError):
    """The engine's queue is full; the order may come again later."""


class TooLarge(LuthierError):
    """The order can never be taken: it needs more room than the engine has."""


class TooComplex(LuthierError):
    """What holds the answers to a format came to its limits under way; the same request would again."""


class EngineFailed(LuthierError):
    """The engine broke down under way, so it takes no more orders."""


@dataclass(frozen=True)
class Piece:
    """One more token of one answer."""

    sample: int
    """Which answer of the order."""
    token: int
    logp: float
    """What the model gives the token: ln p at temperature 1 over the whole vocabulary."""
    likeliest: tuple[tuple[int, float], ...]
    """In its place: the likeliest tokens with their ln p, as many as the order asked for."""
    text: str
    """What is certain of the text since the piece before; may be empty."""
    finish: Finish | None
    """Not None: the answer ends here."""
    known: int = 0
    """How many tokens of the order's prompt did not have to be read anew."""


@dataclass(frozen=True)
class Load:
    """How busy an engine is."""

    answers: int
    """Under way."""
    waiting: int
    """Orders in the queue."""


class Ticket:
    """An order that was taken: its tokens as they come."""

    def __init__(self, num_answers: int):
        self._queue: asyncio.Queue[Sequence[Piece] | LuthierError] = asyncio.Queue()
        self._left = num_answers

    def put(self, what: Sequence[Piece] | LuthierError) -> None:
        """New tokens, or why there will be none. To be called in the event loop."""
        self._queue.put_nowait(what)

    async def pieces(self) -> AsyncIterator[Piece]:
        """The tokens of all answers, until the last one ends.

        Raises:
            LuthierError: the engine cannot go on with the order.
        """
        while self._left:
            what = await self._queue.get()
            if isinstance(what, LuthierError):
                raise what
            for piece in what:
                self._left -= piece.finish is not None
                yield piece


class Engine(Protocol):
    """What a server asks of an engine."""

    def start(self) -> None:
        """Begins to take orders."""
        ...

    def submit(self, order: Order) -> Ticket:
        """Takes an order, which waits its turn.

        Raises:
            Busy: the queue is full.
            TooLarge: there can never be room for it.
            EngineFailed: it broke down before.
        """
        ...

    def drop(self, ticket: Ticket) -> None:
        """Nobody waits for this order any more. Does nothing if it has ended."""
        ...

    def stop(self) -> None:
        """Ends the thread or process; orders under way end with an error."""
        ...

    @property
    def load(self) -> Load:
        """How busy it is."""
        ...

    @property
    def failure(self) -> str | None:
        """Why it takes no orders any more; None: it works."""
        ...
