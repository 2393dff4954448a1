"""One process makes what several want, on one machine or on several that share a folder; the others wait for it."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_SECONDS_BETWEEN_TRIES = 0.2
_SECONDS_BETWEEN_WORDS = 5.0


@contextmanager
def alone(entry: Path, waits: Callable[[str], None]) -> Iterator[None]:
    """Holds an entry of a cache for this process. `waits` is told now and then while another one has it.

    The system lets go of it when a process ends, however it ends. Where a disk knows no locks, nobody waits.

    Raises:
        OSError: if the folder cannot be written.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    file = entry.with_name(f"{entry.name}.lock")
    held = _held(file, waits)
    try:
        yield
    finally:
        if held is not None:
            with suppress(OSError):
                file.unlink()  # while it is held, so that nobody takes a file that is gone
            os.close(held)


def _held(file: Path, waits: Callable[[str], None]) -> int | None:
    """The descriptor of a file that is locked and has its name still; None where there are no locks."""
    if sys.platform == "win32":  # everybody makes it, as whole entries allow
        return None
    told = time.monotonic() - _SECONDS_BETWEEN_WORDS / 2
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                    return descriptor
            os.close(descriptor)
        except BlockingIOError:
            os.close(descriptor)
            if time.monotonic() - told >= _SECONDS_BETWEEN_WORDS:
                told = time.monotonic()
                waits(f"another process makes the same tokens ready; waiting for it ({file.name})")
            time.sleep(_SECONDS_BETWEEN_TRIES)
        except OSError:  # a network disk without locks
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
