"""Other Python processes that do a part of the work: they are asked, and answer.

A worker is a fresh interpreter at the other end of a socket, not a fork: the training process has threads, and the
user's script need not be written for being started twice. It ends when the socket closes, so none outlives the
process that asked; Ctrl-C is the asker's to handle. One that ends or does not answer is an error that says what it
was doing, never a wait without end.
"""

import os
import socket
import subprocess
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any

from luthier.data.content import Content
from luthier.data.pipeline import Encode, Outcome, Recipe, TooLong, encode_portion
from luthier.errors import LuthierError, RunError

PATIENCE_SECONDS = 300.0
"""Longest time without a sign of life while a portion of rows is worked on."""
_POLL_SECONDS = 0.5

Handler = Callable[[Any, Callable[[Any], None]], Any]
"""From a request to its answer. What it gives its second argument is told to the asker meanwhile."""


class Worker:
    """A process that answers requests.

    Args:
        make: called in the process with `arguments` to get what answers; a function of a module.
    """

    def __init__(self, make: Callable[..., Handler], *arguments: Any, patience: float = PATIENCE_SECONDS):
        self.patience = patience
        mine, theirs = socket.socketpair()
        with theirs:
            paths = os.pathsep.join(path for path in sys.path if path)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "luthier.data.worker_main", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": paths, "TOKENIZERS_PARALLELISM": "false"},
                process_group=0,
            )
        self._connection = Connection(mine.detach())
        self.what = "starting"
        """What it is doing, for messages."""
        self.request((make, arguments), "starting")

    def request(self, request: Any, what: str) -> None:
        """Asks for something; `answer` gives the answer. One thing at a time."""
        self.what = what
        try:
            self._connection.send(request)
        except OSError:
            raise self._ended() from None

    def answer(self, told: Callable[[Any], None] | None = None) -> Any:
        """Waits for the answer. `told` gets what the process says meanwhile.

        Raises:
            LuthierError: the one that the process raised.
            RunError: the process has ended, failed, or does not answer.
        """
        deadline = time.monotonic() + self.patience
        while True:
            try:
                if not self._connection.poll(_POLL_SECONDS):
                    if time.monotonic() > deadline:
                        self.close()
                        raise RunError(
                            f"{self.what}: the process at work has not answered for {self.patience:.0f} seconds and "
                            "was ended. Look at these rows with `luthier data inspect`, or set data.workers: 0"
                        )
                    continue
                kind, value = self._connection.recv()
            except (EOFError, ConnectionError):
                raise self._ended() from None
            deadline = time.monotonic() + self.patience
            if kind == "answer":
                return value
            if kind == "error":
                raise value
            if kind == "failed":
                raise RunError(f"{self.what}: the process at work failed:\n{value}")
            if told is not None:
                told(value)

    def close(self) -> None:
        """Ends the process, whatever it is doing."""
        self._connection.close()
        self.process.kill()
        self.process.wait()

    def _ended(self) -> RunError:
        self._connection.close()
        try:
            code = self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
        hint = ", as happens when memory runs out" if code == -9 else ""
        return RunError(
            f"{self.what}: the process at work {how}{hint}. "
            "Look at these rows with `luthier data inspect`, or set data.workers: 0"
        )


def serve(descriptor: int) -> None:
    """What a worker's process does: answers until nobody is there any more."""
    connection = Connection(descriptor)
    handler: Handler | None = None

    def tell(value: Any) -> None:
        if connection.poll():  # nothing is asked while an answer is due, so the asker is gone
            raise EOFError
        connection.send(("told", value))

    try:
        while True:
            request = connection.recv()
            try:
                if handler is None:
                    make, arguments = request
                    handler, reply = make(*arguments), ("answer", None)
                else:
                    reply = ("answer", handler(request, tell))
            except LuthierError as error:
                reply = ("error", error)
            except (EOFError, ConnectionError):
                raise
            except Exception:
                reply = ("failed", traceback.format_exc())
            connection.send(reply)
    except (EOFError, ConnectionError):
        return


class EncoderPool:
    """Makes the tokens in several processes; to be used as a pipeline's `encode`.

    Args:
        recipe: how contents become tokens.
        workers: number of processes.
    """

    def __init__(self, recipe: Recipe, workers: int, patience: float = PATIENCE_SECONDS):
        self.workers = [Worker(_make_encoder, recipe, patience=patience) for _ in range(workers)]
        try:
            for worker in self.workers:
                worker.answer()
        except BaseException:
            self.close()
            raise

    def __call__(
        self, portions: Iterable[tuple[str, Sequence[Content]]]
    ) -> Iterator[list[Outcome | TooLong]]:
        """What becomes of each content; portions are dealt out in turn and come back in order."""
        portions = iter(portions)
        asked: deque[Worker] = deque()
        for worker in self.workers:
            if (portion := next(portions, None)) is not None:
                worker.request(portion[1], portion[0])
                asked.append(worker)
        while asked:
            worker = asked.popleft()
            outcomes = worker.answer()
            if (portion := next(portions, None)) is not None:
                worker.request(portion[1], portion[0])
                asked.append(worker)
            yield outcomes

    def close(self) -> None:
        """Ends the processes."""
        for worker in self.workers:
            worker.close()


def _make_encoder(recipe: Recipe) -> Handler:
    encoder = recipe.encoder()
    return lambda contents, tell: encode_portion(encoder, contents)


def make_encode(recipe: Recipe, workers: int) -> tuple[Encode | None, Callable[[], None]]:
    """What makes tokens with so many processes (none: here), and how to end it."""
    if workers == 0 or os.name != "posix":
        return None, lambda: None
    pool = EncoderPool(recipe, workers)
    return pool, pool.close
