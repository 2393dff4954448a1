"""What happened to a run, in a form that shows every later change: `audit.jsonl`, a chain of hashes.

A line is canonical JSON (sorted keys, no spaces, ASCII) of `{time, event, detail, previous, hash}`. `hash` is
the SHA-256 of the same object without `hash`; `previous` is the `hash` of the line before. So no byte can be
changed, and no line added, removed or moved before the end, without `verify` seeing it. It holds no secret:
who writes the rest of the file anew from some line on makes a whole chain again, so keep the last hash
elsewhere if that matters. The chain says what was done, never by whom: no user, no host, no absolute path.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from luthier.runs.lines import LineFile, whole_lines

Event = Literal[
    "started",  # detail: config, data (hashes)
    "resumed",  # detail: step
    "checkpoint",  # detail: step, path
    "files",  # detail: files (path in the run folder -> SHA-256)
    "network",  # detail: host, purpose
    "interrupted",
    "failed",
    "finished",
    "mended",  # detail: bytes of a line that was cut
]
FIRST = "0" * 64

_KEYS = {"time", "event", "detail", "previous", "hash"}


def append(path: Path, event: Event, detail: dict[str, Any] | None = None) -> str:
    """Adds one event to the chain, waits until it is on the disk and returns its hash.

    Detail is plain JSON; numbers must be finite. A last line that was cut by a dying process is removed
    first, and the chain says so. Raises RunError where the disk is full, read-only or forbidden.
    """
    with LineFile(path) as file:
        if file.mended_bytes:
            _add(file, "mended", {"bytes": file.mended_bytes})
        return _add(file, event, detail or {})


def verify(path: Path) -> list[str]:
    """What is wrong with the chain, a sentence each; empty if it is whole.

    Removing lines from the end leaves a chain that is whole: `verify_run` compares with the run's state.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return [f"{path.name} is missing"]
    return verify_content(content) if content else [f"{path.name} is empty"]


def verify_content(content: bytes) -> list[str]:
    """What is wrong with the bytes of a chain, a sentence each; empty if it is whole."""
    *lines, tail = content.split(b"\n")
    problems: list[str] = []
    previous = FIRST
    for number, line in enumerate(lines, start=1):
        entry = _entry(line)
        if entry is None:
            problems.append(f"line {number} is not an audit line, or was written differently")
        elif entry["hash"] != _hash(entry):
            problems.append(f"line {number} ({entry['event']}) was changed: its hash does not fit")
        elif entry["previous"] != previous:
            problems.append(f"line {number} ({entry['event']}) does not follow the line before it")
        previous = _link(line)
    if tail:
        problems.append(f"line {len(lines) + 1} was cut: {len(tail)} bytes without an end")
    return problems


def read_audit(path: Path) -> list[dict[str, Any]]:
    """The events that can be read, in order. Says nothing about whether they are true: see `verify`."""
    return [entry for line in whole_lines(path) if (entry := _entry(line)) is not None]


def verify_run(folder: Path) -> list[str]:
    """What is wrong with a run folder: its chain, and what the chain says about its files and its state."""
    path = folder / "audit.jsonl"
    problems = verify(path)
    events = read_audit(path)
    files: dict[str, str] = {}
    for entry in events:
        if entry["event"] == "resumed":
            files = {}  # what was there before is added to
        files |= entry["detail"].get("files", {}) if entry["event"] == "files" else {}
    for name, expected in sorted(files.items()):
        file = folder / name
        if not file.is_file():
            problems.append(f"{name} was written by the run and is missing")
        elif hash_file(file) != expected:
            problems.append(f"{name} was changed after the run wrote it")
    started = [
        entry for entry in events if entry["event"] in ("started", "resumed") and "config" in entry["detail"]
    ]
    config = folder / "config.yaml"
    if started and config.is_file() and started[-1]["detail"]["config"] != hash_file(config):
        problems.append("config.yaml is not the one that the run was started with")
    if _state(folder) == "done" and not any(entry["event"] == "finished" for entry in events):
        problems.append("the run is done, but the chain does not say so: lines are missing at its end")
    return problems


def hash_text(text: str) -> str:
    """SHA-256 of a text in UTF-8, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(root: Path, paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files, and of all files in folders, by their path under `root`: the detail of `files`."""
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return {file.relative_to(root).as_posix(): hash_file(file) for file in files if file.is_file()}


def _add(file: LineFile, event: Event, detail: dict[str, Any]) -> str:
    lines = whole_lines(file.path)
    entry: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "event": event,
        "detail": json.loads(json.dumps(detail, allow_nan=False)),  # keys become text before they are sorted
        "previous": _link(lines[-1]) if lines else FIRST,
    }
    entry["hash"] = _hash(entry)
    file.add(_canonical(entry), sync=True)
    return entry["hash"]


def _link(line: bytes) -> str:
    """What the next line names as `previous`. After a broken line the chain goes on from its bytes."""
    entry = _entry(line)
    return entry["hash"] if entry is not None else hashlib.sha256(line).hexdigest()


def _entry(line: bytes) -> dict[str, Any] | None:
    """The object of a line; None if it is not exactly what `_canonical` writes."""
    try:
        entry = json.loads(line)
        whole = isinstance(entry, dict) and set(entry) == _KEYS and _canonical(entry).encode() == line
    except (ValueError, RecursionError):
        return None
    return entry if whole and _is_typed(entry) else None


def _is_typed(entry: dict[str, Any]) -> bool:
    texts = all(isinstance(entry[name], str) for name in _KEYS - {"detail"})
    return texts and isinstance(entry["detail"], dict) and bool(re.fullmatch("[0-9a-f]{64}", entry["hash"]))


def _hash(entry: dict[str, Any]) -> str:
    return hash_text(_canonical({name: value for name, value in entry.items() if name != "hash"}))


def _canonical(value: dict[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _state(folder: Path) -> str | None:
    try:
        status = json.loads((folder / "status.json").read_text())
    except (OSError, ValueError):
        return None
    return status.get("state") if isinstance(status, dict) else None
