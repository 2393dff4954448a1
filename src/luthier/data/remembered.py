"""What cleaning remembers between the windows of a stream: with each window what is new, so nothing is written twice.

A place in a stream names the files of the windows before it, of which the last ones are needed (`clean/state.py`); a
checkpoint holds these as one.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from luthier.data.clean.state import joined
from luthier.errors import DataError

_NAME = "cleaner.npy"


def write(folder: Path, news: bytes) -> None:
    """Puts what is new in a window into its folder."""
    np.save(folder / _NAME, np.frombuffer(news, np.uint8))


def files_behind(files: tuple[str, ...], entry: Path) -> tuple[str, ...]:
    """The files of a place and of the window in this folder, which begins there."""
    return (*files, str(entry / _NAME)) if (entry / _NAME).exists() else files


def read(files: Sequence[str]) -> bytes:
    """All that is still remembered, as one part.

    Raises:
        DataError: if a file is not there any more.
    """
    try:
        return joined(np.load(file).tobytes() for file in reversed(files))
    except (OSError, ValueError, KeyError) as fault:
        raise DataError(
            f"what data.clean remembers of earlier rows cannot be read back ({fault}); was the cache of tokens "
            "emptied meanwhile? Start the run anew"
        ) from fault


def keep(folder: Path, part: bytes) -> str:
    """Writes a part that a checkpoint held into a folder of windows; returns the file."""
    file = folder / f"memory-{hashlib.sha256(part).hexdigest()[:16]}.npy"
    folder.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.tmp")
    with partial.open("wb") as stream:
        np.save(stream, np.frombuffer(part, np.uint8))
    partial.rename(file)
    return str(file)


def remove_rows(entry: Path) -> None:
    """Removes a window whose rows nobody reads any more, but not what cleaning remembers of them."""
    if not (entry / _NAME).exists():
        shutil.rmtree(entry, ignore_errors=True)
        return
    for file in entry.iterdir():
        if file.name != _NAME:
            file.unlink(missing_ok=True)
