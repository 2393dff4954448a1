"""Tokens kept on disk: by other processes of this run to be read, and by the next run over the same rows.

An entry is a folder, named by a key over everything that changes its content: the data, the template, the
tokenizer, the settings, and the code of this package. It is written under another name and renamed when whole;
what is not whole or was changed since is thrown away and made again.
"""

import errno
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
_META = "meta.json"
_EDGE_BYTES = 1 << 16
_TRIES = 8


def cache_key(files: Sequence[Path], parts: Iterable[str], *, whole: bool = True) -> str:
    """A name that only the same files' contents, the same other parts and the same code give.

    `whole=False` looks at the files' names, sizes, times and edges instead of all that is in them: for data that
    would take minutes to read.
    """
    key = hashlib.sha256()
    for part in [*parts, code_version(), *(_digest(file) if whole else outline(file) for file in files)]:
        encoded = part.encode("utf-8", "surrogatepass")
        key.update(len(encoded).to_bytes(8, "little") + encoded)
    return key.hexdigest()[:32]


def load(folder: Path) -> tuple[Arrays, dict[str, Any]] | None:
    """The arrays of an entry, mapped from disk, and its facts; None if there is none or it is not whole."""
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        if any(_digest(folder / f"{name}.npy") != digest for name, digest in meta["digests"].items()):
            return None
        return open_arrays(folder, meta["digests"]), meta["facts"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # missing, cut short or garbled: the caller makes it again


def open_arrays(folder: Path, names: Iterable[str], *, map_them: bool = True) -> Arrays:
    """Arrays of a folder, mapped from disk or read into memory.

    They are plain arrays in both cases: to cut a piece out of numpy's `memmap` takes ten times as long.
    """
    mode = "r" if map_them else None
    return {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode=mode)) for name in names}


def is_there(folder: Path) -> bool:
    """Whether there is an entry; only `load` knows whether it is whole."""
    return (folder / _META).exists()


@contextmanager
def new_entry(folder: Path, facts: dict[str, Any]) -> Iterator[Path]:
    """A folder for the arrays of an entry, which it becomes at the end: whole, or not at all.

    `facts` may be filled in until then. An entry that is there already stays if it is whole, else it is replaced.
    Several processes, on several machines that share the folder, may make the same entry at once.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{folder.name}.*.partial"):
        mark, process = left.name.split(".")[-3:-1]
        if mark.startswith(_machine()) and not _is_alive(process):
            shutil.rmtree(left, ignore_errors=True)
    partial = _partial(folder)
    partial.mkdir()
    try:
        yield partial
        digests = {file.stem: _digest(file) for file in sorted(partial.glob("*.npy"))}
        (partial / _META).write_text(json.dumps({"digests": digests, "facts": facts}), encoding="utf-8")
        _put(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def remove_partials(folder: Path, process: int) -> None:
    """Removes what a process of this machine, which has ended, left half written among the entries of a folder."""
    for left in folder.glob(f"*.{_machine()}*.{process}.partial"):
        shutil.rmtree(left, ignore_errors=True)


def _put(partial: Path, folder: Path) -> None:
    """Gives a whole entry its name. Another one that is whole and came first stays, since the key says all of it."""
    for _ in range(_TRIES):
        try:
            partial.rename(folder)
            return
        except OSError as fault:
            if fault.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
        if load(folder) is not None:
            return
        broken = _partial(folder)
        with suppress(FileNotFoundError):  # somebody else has moved it
            folder.rename(broken)
        shutil.rmtree(broken, ignore_errors=True)
    raise FileExistsError(errno.EEXIST, "another process writes the same tokens again and again", str(folder))


def _partial(folder: Path) -> Path:
    """A name beside an entry that nobody else uses, from which machine and process can be read."""
    return folder.with_name(f"{folder.name}.{_machine()}{secrets.token_hex(4)}.{os.getpid()}.partial")


@cache
def _machine() -> str:
    """A few letters for this machine: numbers of processes mean something there only."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def outline(file: Path) -> str:
    """What tells a file from another without reading it: its size, the time of its last change, and its edges."""
    about = file.stat()
    with file.open("rb") as stream:
        edges = stream.read(_EDGE_BYTES)
        stream.seek(max(0, about.st_size - _EDGE_BYTES))
        edges += stream.read(_EDGE_BYTES)
    return f"{about.st_size}:{about.st_mtime_ns}:{hashlib.sha256(edges).hexdigest()}"


def _is_alive(process: str) -> bool:
    """Whether a process of this machine, other than this one, has that number."""
    if not process.isdigit() or int(process) == os.getpid():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def code_version() -> str:
    """The code that makes the tokens: this package's files and the libraries that render and tokenise."""
    folder = Path(__file__).parent
    sources = {str(file.relative_to(folder)): _digest(file) for file in sorted(folder.rglob("*.py"))}
    libraries = {name: importlib.metadata.version(name) for name in ("jinja2", "tokenizers", "numpy")}
    return json.dumps([sources, libraries])
