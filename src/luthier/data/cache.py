"""Tokens kept on disk for the next run over the same rows with the same model.

An entry is a folder, named by a key over everything that changes its content: the bytes of the data, the
template, the tokenizer, the settings, and the code of this package. It is written under another name and
renamed when whole; what is not whole or was changed since is thrown away and made again.
"""

import hashlib
import importlib.metadata
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]
_META = "meta.json"


def cache_key(files: Sequence[Path], parts: Iterable[str]) -> str:
    """A name that only the same files' contents, the same other parts and the same code give."""
    key = hashlib.sha256()
    for part in [*parts, _code_version(), *(_digest(file) for file in files)]:
        encoded = part.encode("utf-8", "surrogatepass")
        key.update(len(encoded).to_bytes(8, "little") + encoded)
    return key.hexdigest()[:32]


def load(folder: Path) -> tuple[Arrays, dict[str, Any]] | None:
    """The arrays of an entry, mapped from disk, and its facts; None if there is none or it is not whole."""
    try:
        meta = json.loads((folder / _META).read_text(encoding="utf-8"))
        if any(_digest(folder / f"{name}.npy") != digest for name, digest in meta["digests"].items()):
            return None
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r") for name in meta["digests"]}
        return arrays, meta["facts"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # missing, cut short or garbled: the caller makes it again


def save(folder: Path, arrays: Arrays, facts: dict[str, Any]) -> None:
    """Writes an entry whole or not at all; one that is there already is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        for name, array in arrays.items():
            np.save(partial / f"{name}.npy", array)
        digests = {name: _digest(partial / f"{name}.npy") for name in arrays}
        (partial / _META).write_text(json.dumps({"digests": digests, "facts": facts}), encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _code_version() -> str:
    """The code that makes the tokens: this package's files and the libraries that render and tokenise."""
    folder = Path(__file__).parent
    sources = {str(file.relative_to(folder)): _digest(file) for file in sorted(folder.rglob("*.py"))}
    libraries = {name: importlib.metadata.version(name) for name in ("jinja2", "tokenizers", "numpy")}
    return json.dumps([sources, libraries])
