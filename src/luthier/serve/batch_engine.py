"""Engines of our own scheduling: a thread with a running batch that answers join and leave between two tokens.

What computes the logits is another's: a model of transformers (native.py), or llama.cpp (llama.py).
"""

import asyncio
import threading
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from itertools import groupby

import torch

from luthier.errors import LuthierError, RunError
from luthier.rollout.live import Answer, LiveBatch, Speaker
from luthier.serve.engine import Busy, EngineFailed, Load, Order, Piece, Ticket, TooComplex, TooLarge


@dataclass(eq=False)
class _Taken:
    """An order with whom it is for."""

    order: Order
    ticket: Ticket
    loop: asyncio.AbstractEventLoop
    left: int
    """Answers that have not ended."""


class BatchEngine:
    """Answers with one running batch. A kind of engine says who speaks in it (`_speakers`).

    Args:
        most_rows: most answers at a time.
        cache_tokens: most tokens of prompts and answers at a time, as if all answers took their full length.
        most_waiting: most orders that wait.
    """

    def __init__(self, *, most_rows: int, cache_tokens: int, most_waiting: int):
        self._most_rows, self._cache_tokens, self._most_waiting = most_rows, cache_tokens, most_waiting
        self._changed = threading.Condition()
        self._waiting: deque[_Taken] = deque()
        self._dropped: set[Ticket] = set()
        self._going: dict[int, _Taken] = {}  # by the order's id; the thread's own
        self._batch: LiveBatch | None = None
        self._num_going = 0
        self._stopping = False
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="luthier-engine", daemon=True)
        self.ways: dict[str, str] = {}
        """For each model one sentence for people: how it generates."""

    def start(self) -> None:
        """Makes the batch, so that models that cannot be served are told before anything listens; begins."""
        with torch.no_grad():
            self._batch = LiveBatch(self._speakers(), most_rows=self._most_rows)
        self._thread.start()

    def submit(self, order: Order) -> Ticket:
        assert self._batch is not None, "started before"
        ticket = Ticket(order.settings.num_samples)
        with self._changed:
            self._refuse_failed()
            if not self._batch.ever_fits(order):
                raise TooLarge(
                    f"the request needs room for {order.settings.num_samples} answers of {len(order.prompt)} + "
                    f"{order.limit} tokens, but the server has room for {self._most_rows} answers and "
                    f"{self._cache_tokens} tokens in all; ask for fewer or shorter answers"
                )
            # Those that came since the last token are not waiting yet: there is room for some of them.
            room = self._most_waiting + max(0, self._most_rows - self._num_going)
            if len(self._waiting) >= room:
                raise Busy(f"{len(self._waiting)} requests are waiting already; come again later")
            loop = asyncio.get_running_loop()
            self._waiting.append(_Taken(order, ticket, loop, order.settings.num_samples))
            self._changed.notify()
        return ticket

    def drop(self, ticket: Ticket) -> None:
        with self._changed:
            self._dropped.add(ticket)
            self._changed.notify()

    def stop(self) -> None:
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join()
        self._close()

    @property
    def load(self) -> Load:
        return Load(self._num_going, len(self._waiting))

    @property
    def failure(self) -> str | None:
        return self._failure

    def _refuse_failed(self) -> None:
        if self._failure or self._stopping:
            raise EngineFailed(self._failure or "the server is shutting down")

    def _run(self) -> None:
        try:
            with torch.no_grad(), self._computing():
                while self._turn():
                    pass
            error = EngineFailed("the server is shutting down")
        except Exception as fault:  # whatever a model's code or a device comes to
            traceback.print_exc()
            text = (str(fault).splitlines() or [""])[0][:200]
            error = EngineFailed(
                f"the engine broke down ({type(fault).__name__}: {text}); restart the server"
            )
        with self._changed:
            self._failure = str(error)
            left = [*self._going.values(), *self._waiting]
            self._waiting.clear()
            self._num_going = 0
        for taken in left:
            _tell(taken.loop, [(taken.ticket, error)])

    def _turn(self) -> bool:
        """One token for all, or a wait for the first order. False: it is to stop."""
        assert self._batch is not None
        with self._changed:
            while not (self._stopping or self._waiting or self._going):
                self._dropped.clear()
                self._changed.wait()
            if self._stopping:
                return False
            self._forget_dropped(self._batch)
            fitting = self._batch.fitting([taken.order for taken in self._waiting])
            joining = [self._waiting.popleft() for _ in fitting]
            self._going |= {id(taken.order): taken for taken in joining}
        if fitting:
            self._deliver(self._batch.join(fitting))
        if self._batch.going:
            self._deliver(self._batch.step())
        self._num_going = len(self._batch.going)
        return True

    def _forget_dropped(self, batch: LiveBatch) -> None:
        if not self._dropped:
            return
        kept = [taken for taken in self._waiting if taken.ticket not in self._dropped]
        self._waiting = deque(kept)
        gone = [taken for taken in self._going.values() if taken.ticket in self._dropped]
        batch.leave([taken.order for taken in gone])
        for taken in gone:
            del self._going[id(taken.order)]
        self._dropped.clear()

    def _deliver(self, answers: list[Answer]) -> None:
        """Hands the newest tokens over, all of one event loop at once."""
        assert self._batch is not None
        told: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, list[Piece] | LuthierError]]] = {}
        for number, some in groupby(answers, key=lambda answer: id(answer.order)):
            taken, own = self._going[number], list(some)
            broken = next((answer for answer in own if answer.broken), None)
            if broken is not None:
                self._batch.leave([taken.order])
            taken.left -= sum(answer.row.finish is not None for answer in own)
            if broken is not None or not taken.left:
                del self._going[number]
            what = [_piece(answer) for answer in own] if broken is None else _broken(broken)
            told.setdefault(taken.loop, []).append((taken.ticket, what))
        for loop, some in told.items():
            _tell(loop, some)

    def _speakers(self) -> Mapping[str, Speaker]:
        """The models by name, ready to speak; fills `ways`."""
        raise NotImplementedError

    def _computing(self) -> AbstractContextManager[object]:
        """What the thread is in while it computes."""
        return nullcontext()

    def _close(self) -> None:
        """Gives back what the models hold; the thread has ended. May be called again."""


def _piece(answer: Answer) -> Piece:
    row = answer.row
    likeliest = tuple(answer.likeliest)
    return Piece(row.sample, row.ids[-1], row.logp[-1], likeliest, row.fresh, row.finish, answer.known)


def _broken(answer: Answer) -> LuthierError:
    kind = TooComplex if answer.unruly else RunError
    return kind(f"the answer broke off after {len(answer.row.ids)} tokens: {answer.broken}")


def _tell(
    loop: asyncio.AbstractEventLoop, told: Sequence[tuple[Ticket, Sequence[Piece] | LuthierError]]
) -> None:
    """Puts what there is on the tickets, in their event loop; a loop that has ended wants nothing."""

    def put() -> None:
        for ticket, what in told:
            ticket.put(what)

    with suppress(RuntimeError):
        loop.call_soon_threadsafe(put)
