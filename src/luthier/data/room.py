"""Whether a disk has room for what is being written, told long before it is full."""

import errno
import shutil
from pathlib import Path

_FIRST_ROW = 1024
_LEAST_SHARE = 0.01
GIB = 2**30


class Room:
    """Looks now and then, at rows 1024, 2048, 4096 and so on.

    Args:
        folder: where files are being written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._next = _FIRST_ROW

    def is_due(self, rows: int) -> bool:
        """Whether to look after so many rows."""
        due = rows >= self._next
        if due:
            self._next *= 2
        return due

    def check(self, share: float | None) -> None:
        """Looks, when about this share of the whole is written; None: that is not known.

        Raises:
            OSError: the rest, if it is like the part before, will not fit; in the words for a person.
        """
        if share is None or share < _LEAST_SHARE:
            return
        written = sum(file.stat().st_size for file in self.folder.iterdir() if file.is_file())
        left, free = written / share - written, shutil.disk_usage(self.folder).free
        if left > free:
            raise OSError(
                errno.ENOSPC,
                f"about {(written + left) / GIB:.1f} GiB are needed, and {(written + free) / GIB:.1f} fit",
            )
