"""Files and folders that are written whole or not at all, whatever happens while they are written.

Everything is filled under a hidden name beside its target, forced to the disk and then renamed. A process
that is killed leaves the old state or the new one, besides leftovers that `recover` clears. A disk that is
full, read-only or forbidden becomes one RunError that says how much room there is and what to do.
"""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from luthier.errors import LuthierError, RunError
from luthier.runs.process import ProcessMark

LEFTOVER = re.compile(r"\.(?P<name>.+)\.(?P<mark>\d+-\d+-[0-9a-f]{10})\.[0-9a-f]{8}\.(?P<kind>partial|old)")

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM}
_OCCUPIED = {errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR}
_NEARLY_FULL = 1 << 20


def atomic_write_text(path: Path, text: str) -> None:
    """Writes a text file (UTF-8) so that `path` holds either its old content or all of the new one.

    Raises RunError where the disk is full, read-only or may not be written to.
    """
    atomic_write_bytes(path, text.encode())


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """Writes a file so that `path` holds either its old content or all of the new one. Errors: see above."""
    with atomic_file(path) as partial, open(partial, "xb") as file:
        file.write(content)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A file that appears at `path`, or takes the place of one, only once it is whole: write to the path that is
    handed in. If the body raises, nothing changes at `path`. Errors: see above.
    """
    partial = _hidden(path, "partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        _sync(partial, os.O_RDONLY)
        os.replace(partial, path)
        _sync_folder(path.parent)
    except BaseException as error:
        free = _free_bytes(path)
        _discard(partial)
        _raise_for_people(error, path, free)
        raise


def check_room(path: Path, needed: int) -> None:
    """Raises RunError if the disk of `path` has no room for so many bytes, before any work is done."""
    if (free := _free_bytes(path.absolute())) < needed:
        raise RunError(
            f"{path} needs {needed / 2**20:,.0f} MiB, but only {free / 2**20:,.0f} MiB are free on that disk. "
            "Free some space, or give a folder on another disk."
        )


@contextmanager
def atomic_folder(path: Path, *, replace: bool = True) -> Iterator[Path]:
    """A folder that appears at `path` only once it is whole: fill the folder that is handed in.

    An existing folder at `path` is replaced as a whole, or, with `replace=False`, refused with
    FileExistsError unless it is empty. If the body raises, nothing changes at `path`. Raises RunError where
    the disk is full, read-only or may not be written to, also when the body's own library hides that
    behind an error of its own. When replacing, a kill between the two renames leaves the old folder under a
    hidden name, from which `recover` brings it back.
    """
    partial = _hidden(path, "partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        _sync_tree(partial)
        _swap_in(partial, path, replace)
    except BaseException as error:
        free = _free_bytes(path)  # before the partial folder goes, because its removal makes room again
        _discard(partial)
        _raise_for_people(error, path, free)
        raise


def atomic_remove(path: Path) -> None:
    """Removes a folder or file so that it is there whole or not at all, also when killed meanwhile.

    Raises RunError where the disk is read-only or may not be written to.
    """
    hidden = _hidden(path, "partial")
    try:
        os.rename(path, hidden)
    except OSError as error:
        raise explain(error, path) or error from error
    _discard(hidden)


def recover(folder: Path, *, sole_writer: bool = False) -> None:
    """Clears what killed processes left in `folder` and brings back a folder that was being replaced.

    Leftovers of processes that are alive, or that ran on another machine, are not touched, unless the
    caller is the `sole_writer` of this folder.
    """
    for leftover in sorted(folder.glob(".*")):
        match = LEFTOVER.fullmatch(leftover.name)
        if match is None:
            continue
        if not sole_writer and ProcessMark.parse(match["mark"]).life() != "gone":
            continue
        target = folder / match["name"]
        if match["kind"] == "partial" or target.exists():
            _discard(leftover)
            continue
        try:
            os.rename(leftover, target)
        except OSError:
            # Another reader was faster, or this one may only read: whoever may write recovers it later.
            continue


def explain(error: OSError, path: Path, free: int | None = None) -> RunError | None:
    """The error for people behind a failed write to `path`; None where it is not about its disk.

    `free` is the room in bytes that there was when it failed; now, if absent.
    """
    if error.filename is not None and not _same_line(Path(os.fsdecode(error.filename)), path):
        return None
    if error.errno in _FULL:
        return _full(path, _free_bytes(path) if free is None else free)
    if error.errno == errno.EROFS:
        return RunError(
            f"{path} cannot be written: the file system is read-only. "
            "Set `run.root` to a folder on a disk that can be written to."
        )
    if error.errno in _FORBIDDEN:
        return RunError(
            f"{path} cannot be written: permission denied. "
            "Change the permissions of the folder, or set `run.root` to one that you may write to."
        )
    if error.errno == errno.EIO:
        return RunError(f"{path} cannot be written: the disk reports an input/output error. Check the disk.")
    return None


def _same_line(failed: Path, path: Path) -> bool:
    """Whether what failed lies beside or under `path`, or is one of the folders above it."""
    return failed.is_relative_to(path.parent) or path.is_relative_to(failed)


def _full(path: Path, free: int) -> RunError:
    return RunError(
        f"{path} cannot be written: the disk (or your quota) is full; {free / 2**20:,.1f} MiB are free. "
        "What was saved before is whole. Free some space, lower `checkpoint.keep` or set `run.root` "
        "to a larger disk; `luthier train --resume` then continues from the last checkpoint."
    )


def _raise_for_people(error: BaseException, path: Path, free: int) -> None:
    """Raises the RunError behind `error`, if there is one."""
    if isinstance(error, LuthierError) or not isinstance(error, Exception):
        return
    explained = explain(error, path, free) if isinstance(error, OSError) else None
    # torch and safetensors report a full disk as errors of their own, without an errno.
    hidden = not isinstance(error, OSError) and (free < _NEARLY_FULL or "No space left" in str(error))
    if explained is None and hidden:
        explained = _full(path, free)
    if explained is not None:
        raise explained from error


def _hidden(path: Path, kind: str) -> Path:
    return path.parent / f".{path.name}.{ProcessMark.current()}.{secrets.token_hex(4)}.{kind}"


def _swap_in(partial: Path, path: Path, replace: bool) -> None:
    try:
        os.rename(partial, path)  # also takes the place of an empty folder
    except OSError as error:
        if error.errno not in _OCCUPIED:
            raise
        if not replace:
            raise FileExistsError(errno.EEXIST, "exists and is not empty", str(path)) from error
        old = _hidden(path, "old")
        os.rename(path, old)
        try:
            os.rename(partial, path)
        except OSError:
            os.rename(old, path)
            raise
        _sync_folder(path.parent)
        _discard(old)
    else:
        _sync_folder(path.parent)


def _sync_tree(folder: Path) -> None:
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            file = Path(parent, name)
            if not file.is_symlink():
                _sync(file, os.O_RDONLY)
        _sync_folder(Path(parent))


def _sync_folder(folder: Path) -> None:
    try:
        _sync(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        # Some network file systems cannot sync a folder; the rename itself is still atomic there.
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _discard(path: Path) -> None:
    """Removes a leftover. A failure must not hide the error that it is removed for: `recover` tries again."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        try:
            path.unlink(missing_ok=True)
        except OSError:
            return


def _free_bytes(path: Path) -> int:
    """Room on the disk of the nearest folder that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free
