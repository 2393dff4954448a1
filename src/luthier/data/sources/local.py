"""Files, folders and patterns on this machine's disk."""

import difflib
import glob
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from luthier.config.paths import DATA_SUFFIXES
from luthier.data.sources import splits
from luthier.data.sources.files import DataFile, LocalFile, StreamFile, is_pipe
from luthier.data.sources.kinds import checked_kind, choose_rows, kind_of
from luthier.errors import DataError

_SHOWN = 5


@dataclass
class Found:
    """The files behind a name, and what a person should be told about the choice."""

    files: list[DataFile]
    notes: list[str] = field(default_factory=list)


def find_local(given: str, split: str | None) -> Found | None:
    """The files that a path or a pattern names, in the order they are read; None if there is nothing there.

    Raises:
        DataError: if what is there holds no data, is of an unknown kind or cannot be reached.
    """
    if "\0" in given:
        raise DataError(f"{given!r} cannot be read: no path has a NUL character")
    path = Path(given).expanduser()
    if given == "-" or is_pipe(path):
        return Found([StreamFile(given)])
    if path.is_dir():
        return _folder(path, given, split)
    if _is_there(path):
        return Found(_of_split([_file(str(path))], split, given))
    if glob.has_magic(given):
        return _pattern(given, split)
    return None


def missing(given: str) -> str:
    """Why a path leads nowhere, with the nearest name that is there."""
    path = Path(given).expanduser()
    if path.is_symlink():
        return f"{given} is a link to {os.readlink(path)}, which {_dead_end(path)}"
    if not path.parent.is_dir():
        return f"{given} does not exist, and neither does its folder {path.parent}"
    near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], 1)
    return f"{given} does not exist" + (f"; did you mean {path.parent / near[0]}?" if near else "")


def _is_there(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError) as fault:
        raise DataError(f"{path} cannot be read: {fault}") from fault


def _dead_end(link: Path) -> str:
    try:
        link.resolve(strict=True)
    except FileNotFoundError:
        return "does not exist"
    except (OSError, RuntimeError):
        return "leads back to itself"
    return "is no file"


def _file(name: str) -> LocalFile:
    return LocalFile(name, *checked_kind(name))


def _folder(folder: Path, given: str, split: str | None) -> Found:
    names = sorted(_walk(folder), key=lambda name: Path(name).parts)
    rows, others = choose_rows(names)
    if not rows:
        held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:_SHOWN]) or "nothing"
        raise DataError(f"the folder {given} has no data files ({', '.join(DATA_SUFFIXES)}); it holds {held}")
    notes = []
    if others:
        notes.append(
            f"{given}: not read, because they are no data files or stand next to some: {_some(others)}"
        )
    chosen = (
        _training_files(rows, given, notes) if split is None else splits.files_of_split(rows, split, given)
    )
    return Found([_file(str(folder / name)) for name in chosen], notes)


def _training_files(names: list[str], given: str, notes: list[str]) -> list[str]:
    """All files, but where some are called train and others test or validation, not the latter."""
    found = {name: splits.split_of(name) for name in names}
    held_out = [name for name in names if found[name] in ("test", "validation")]
    if "train" not in found.values():
        notes += _read_too(held_out, names, given)
        return names
    if held_out:
        notes.append(
            f"{given}: not read, because their names speak of another split than train: {_some(held_out)}; "
            "name them in data.eval_path, or one by one to train on them too"
        )
    return [name for name in names if name not in held_out]


def _read_too(held_out: list[str], names: list[str], given: str) -> list[str]:
    """A note, if some files that are called test or validation are read like the others."""
    if not 0 < len(held_out) < len(names):
        return []
    return [f"{given}: names speak of test or validation and are read with the others: {_some(held_out)}"]


def _walk(folder: Path) -> Iterator[str]:
    """All files below a folder as paths from there, hidden ones left out; links are followed, each folder once.

    Raises:
        DataError: if a link in it leads nowhere.
    """
    seen: set[tuple[int, int]] = set()
    for root, folders, names in os.walk(folder, followlinks=True, onerror=_raise):
        facts = os.stat(root)
        if (facts.st_dev, facts.st_ino) in seen:
            folders.clear()
            continue
        seen.add((facts.st_dev, facts.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(root, name)
            if name.startswith("."):
                continue
            if path.is_symlink() and kind_of(name) is not None and not path.exists():
                raise DataError(missing(str(path)))
            if path.is_file():
                yield path.relative_to(folder).as_posix()


def _raise(fault: OSError) -> None:
    raise DataError(f"the folder {fault.filename} cannot be read: {fault.strerror}") from fault


def _pattern(given: str, split: str | None) -> Found:
    expanded = os.path.expanduser(given)
    paths = [Path(name) for name in sorted(glob.glob(expanded, recursive=True))]
    files = [path for path in paths if path.is_file()]
    if not files:
        matched = f"only folders: {_some([path.name for path in paths])}" if paths else "nothing"
        folder = _first_folder(expanded)
        there = "" if folder.is_dir() else f"; the folder {folder} does not exist"
        raise DataError(f"the pattern {given} matches {matched}{there}")
    rows = [str(path) for path in files if kind_of(path.name) is not None]
    others = [path.name for path in files if kind_of(path.name) is None]
    if not rows:
        raise DataError(
            f"the pattern {given} matches no data files ({', '.join(DATA_SUFFIXES)}): {_some(others)}"
        )
    notes = [f"{given}: not read, because they are no data files: {_some(others)}"] if others else []
    if split is None:
        held_out = [
            Path(name).name for name in rows if splits.split_of(Path(name).name) in ("test", "validation")
        ]
        notes += _read_too(held_out, rows, given)
    return Found(_of_split([_file(name) for name in rows], split, given), notes)


def _of_split(files: list[LocalFile], split: str | None, given: str) -> list[DataFile]:
    if split is None or (split == "train" and len(files) == 1):  # a file that is named alone is what is meant
        return list(files)
    chosen = splits.files_of_split([file.name for file in files], split, given)
    return [file for file in files if file.name in set(chosen)]


def _first_folder(pattern: str) -> Path:
    """The folder that a pattern starts at: what stands before its first part with a `*`."""
    parts: list[str] = []
    for part in Path(pattern).parts:
        if re.search(r"[*?\[]", part):
            break
        parts.append(part)
    return Path(*parts) if parts else Path(".")


def _some(names: Iterable[str]) -> str:
    """The first few of the names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return ", ".join(every[:_SHOWN]) + more
