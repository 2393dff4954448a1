"""What the processes of tests/data/test_workers.py do; they import it by name."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from luthier.data.workers import Worker
from luthier.errors import DataError


def handler(prefix: str) -> Callable[[Any, Callable[[Any], None]], Any]:
    """What the processes of these tests do."""

    def handle(request: Any, tell: Callable[[Any], None]) -> Any:
        kind, value = request
        if kind == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "hang":
            time.sleep(1000)
        if kind == "refuse":
            raise DataError(f"{prefix}{value}")
        if kind == "fail":
            raise ZeroDivisionError(value)
        if kind == "tell":
            for number in range(value):
                tell(number)
        return f"{prefix}{value}"

    return handle


def start() -> Worker:
    """A process that is ready."""
    worker = Worker(handler, "made: ")
    worker.answer()
    return worker
