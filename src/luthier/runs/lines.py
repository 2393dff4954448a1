"""Files of one JSON object a line that grow at the end and survive a process that dies while it writes.

A line is one write. A line that was cut (no newline at its end and no whole object) never counts: readers
pass over it, and the next writer removes it before it adds its own.
"""

import json
import os
from pathlib import Path
from typing import Any, Self

from luthier.errors import RunError
from luthier.runs.atomic import explain


class LineFile:
    """A file that lines are added to. Opening it mends a line that was cut; `mended_bytes` were removed.

    Raises RunError where the disk is full, read-only or may not be written to; a line that does not fit is
    taken back, so that the file stays whole.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise explain(error, path) or error from error
        try:
            self.mended_bytes = self._mend()
        except OSError as error:
            self.close()
            raise explain(error, path) or error from error

    def add(self, line: str, *, sync: bool = False) -> None:
        """Adds a line (without its newline) in one piece; `sync` waits until it is on the disk."""
        assert "\n" not in line
        # A lone surrogate has no UTF-8, but its escape is the same in Python and in JSON.
        content = line.encode("utf-8", "backslashreplace") + b"\n"
        size = os.fstat(self._descriptor).st_size
        try:
            while content:  # a nearly full disk takes a part before it says no
                content = content[os.write(self._descriptor, content) :]
            if sync:
                os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, size)
            raise explain(error, self.path) or error from error

    def close(self) -> None:
        """Closes the file. A second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _mend(self) -> int:
        """Ends the last line with its newline, or removes it where it was cut. Returns the bytes removed."""
        size = os.fstat(self._descriptor).st_size
        start = _start_of_last_line(self._descriptor, size)
        tail = os.pread(self._descriptor, size - start, start)
        if not tail:
            return 0
        if is_object(tail):
            os.write(self._descriptor, b"\n")
            return 0
        os.ftruncate(self._descriptor, start)
        return len(tail)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Every object of the file in order, without a last line that was cut. An absent file has none.

    Raises RunError that names the line where another one is not a JSON object.
    """
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(whole_lines(path), start=1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise RunError(
                f"{path}, line {number}: not a JSON object: {line[:60]!r}. "
                "The file was changed or damaged after it was written; remove the line to read the rest."
            )
        rows.append(row)
    return rows


def whole_lines(path: Path) -> list[bytes]:
    """The lines of the file without their newlines and without a last line that was cut."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    *lines, tail = content.split(b"\n")
    if is_object(tail):
        lines.append(tail)
    return lines


def is_object(line: bytes) -> bool:
    """Whether a line without a newline is whole. The start of an object never is an object."""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _start_of_last_line(descriptor: int, size: int) -> int:
    """Position after the last newline, found from the end: these files can be long."""
    end = size
    while end > 0:
        start = max(0, end - 65536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
