"""Files behind a URL (`s3://`, `gs://`, `https://` and others), read through fsspec without a copy on the disk."""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from luthier.config.paths import DATA_SUFFIXES
from luthier.data.sources import splits
from luthier.data.sources.files import DataFile
from luthier.data.sources.kinds import checked_kind, choose_rows
from luthier.data.sources.local import Found
from luthier.errors import DataError

_BUFFER = 1 << 22
_INSTALL = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "http": "aiohttp",
    "https": "aiohttp",
    "abfs": "adlfs",
    "az": "adlfs",
}


@dataclass(frozen=True)
class RemoteFile:
    """One file behind a URL."""

    name: str
    kind: str
    packed: str
    size: int | None

    @property
    def is_here(self) -> bool:
        """Never."""
        return False

    def local(self) -> Path | None:
        """Nothing: it is read where it lies."""
        return None

    def open(self) -> BinaryIO:
        """Its bytes, fetched in blocks as they are read."""
        filesystem, path = _filesystem(self.name)
        try:
            return io.BufferedReader(filesystem.open(path, "rb", block_size=_BUFFER))
        except Exception as fault:  # each protocol's library has errors of its own
            raise DataError(f"{self.name} cannot be opened: {_reason(fault)}") from fault

    def stamp(self) -> str:
        """Size and what else the storage says that changes with the content."""
        filesystem, path = _filesystem(self.name)
        try:
            facts = filesystem.info(path)
        except Exception as fault:
            raise DataError(f"{self.name} cannot be read: {_reason(fault)}") from fault
        marks = [
            facts.get(key) for key in ("size", "ETag", "etag", "md5Hash", "mtime", "LastModified", "created")
        ]
        return " ".join(str(mark) for mark in marks if mark is not None)


def is_url(given: str) -> bool:
    """Whether a name is a URL."""
    return re.match(r"[a-z][a-z0-9+.-]*://", given) is not None


def find_remote(given: str, split: str | None) -> Found:
    """The files that a URL names: a file, a folder or a pattern.

    Raises:
        DataError: if the storage cannot be reached, or has no data there.
    """
    filesystem, path = _filesystem(given)
    scheme = given.split("://", 1)[0]
    try:
        paths = _list(filesystem, path, scheme)
    except Exception as fault:  # each protocol's library has errors of its own
        raise DataError(f"{given} cannot be reached: {_reason(fault)}") from fault
    if not paths:
        raise DataError(f"{given} does not exist, or names no files")
    single = list(paths) == [path]
    chosen, others = ([path], []) if single else choose_rows(sorted(paths))
    if not chosen:
        raise DataError(f"{given} has no data files ({', '.join(DATA_SUFFIXES)})")
    if split is not None:
        chosen = splits.files_of_split(chosen, split, given)
    files: list[DataFile] = []
    for one in chosen:
        name = given if single else filesystem.unstrip_protocol(one)
        files.append(RemoteFile(name, *checked_kind(name.split("?", 1)[0]), paths[one]))
    return Found(files, [f"{given}: {len(others)} files there are no data files"] if others else [])


def _list(filesystem: Any, path: str, scheme: str) -> dict[str, int | None]:
    """The files behind a path with their sizes."""
    if scheme in ("http", "https"):
        return {path: filesystem.info(path).get("size")}  # a web server has no folders
    if re.search(r"[*?\[]", path):
        found = filesystem.glob(path, detail=True)
    elif filesystem.isfile(path):
        found = {path: filesystem.info(path)}
    else:
        found = filesystem.find(path, detail=True)
    return {name: facts.get("size") for name, facts in found.items() if facts.get("type") != "directory"}


def _filesystem(url: str) -> tuple[Any, str]:
    scheme = url.split("://", 1)[0]
    try:
        import fsspec.core

        return fsspec.core.url_to_fs(url)
    except ImportError as fault:
        package = _INSTALL.get(scheme, "fsspec")
        raise DataError(f"{url} needs a package that is not installed: pip install {package}") from fault
    except ValueError as fault:
        raise DataError(f"{url} cannot be read: {fault}") from fault


def _reason(fault: Exception) -> str:
    text = str(fault).strip().splitlines()
    return f"{type(fault).__name__}: {text[0]}" if text else type(fault).__name__
