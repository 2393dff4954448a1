"""Signs of life of a reader that gives no rows for long, so that whoever waits for rows knows that it is at work."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

EVERY_BYTES = 1 << 24
EVERY_ROWS = 1 << 14
_SECONDS = 2.0


def _nobody(text: str) -> None:
    """Where nobody waits."""


@dataclass
class Signs:
    """What a source says about its own work between two rows, such as which part of a file it passes over.

    All parts of a source share one, whose `tell` may be set at any time.
    """

    tell: Callable[[str], None] = _nobody

    @contextmanager
    def meanwhile(self, text: str) -> Iterator[None]:
        """Tells every two seconds, from a thread, while something is under way that cannot tell itself."""
        ended = threading.Event()

        def repeat() -> None:
            while not ended.wait(_SECONDS):
                self.tell(text)

        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
