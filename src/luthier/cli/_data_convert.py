"""Writes canonical rows, and the refused ones beside them: both whole or not at all."""

import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from luthier.errors import ConfigError, RowRefused, RunError

if TYPE_CHECKING:
    from luthier.cli._data_plan import Look
    from luthier.data.sources import Row

STDOUT = "-"


def convert(look: "Look", rows: "Iterable[Row]", out: str, force: bool) -> None:
    """Converts the rows, writes them to `out`, and says on the error output what became of them.

    Raises:
        ConfigError: if a file is there already, or is one of those that are read.
        DataError: if the data cannot be read, or none of its rows can be converted.
        RunError: if a file cannot be written.
    """
    from luthier.data.ledger import Ledger

    ledger, refused = Ledger(), None if out == STDOUT else refused_path(Path(out))
    for path in [] if refused is None else [Path(out), refused]:
        _check_free(path, look.source.files, force)
    with ExitStack() as files:
        good = sys.stdout if refused is None else files.enter_context(_written(Path(out)))
        bad: IO[str] | None = None
        for row, line, reason, aside in _converted(look, rows):
            ledger.add("kept" if line is not None else "dropped", row.where, reason, set_aside=aside)
            if line is not None:
                good.write(line + "\n")
            elif refused is not None:
                bad = bad or files.enter_context(_written(refused))
                bad.write(_refused_line(row, reason, aside) + "\n")
        if not ledger.kept:
            ledger.check(1.0)  # raises, with the reasons
    if refused is not None and bad is None:
        refused.unlink(missing_ok=True)  # of an earlier conversion
    print(ledger.summary(), file=sys.stderr)
    if bad is not None:
        print(f"the rows that were left out, with their reasons: {refused}", file=sys.stderr)


def refused_path(out: Path) -> Path:
    """Where the rows go that are left out of a file."""
    return out.with_name(f"{out.name.removesuffix('.jsonl')}.refused.jsonl")


def _converted(look: "Look", rows: "Iterable[Row]") -> "Iterator[tuple[Row, str | None, str | None, bool]]":
    """Each row with its canonical line, or with the reason why there is none and whether that is on purpose."""
    from luthier.config.data_section import CleanSection
    from luthier.data.canonical import canonical_line
    from luthier.data.clean import Cleaner
    from luthier.data.convert import convert_row, formats_of

    plan = look.plan
    formats = [formats_of(one) for one in plan.sets]
    cleaner = Cleaner(plan.clean, plan.eval_texts) if plan.clean != CleanSection() else None
    for row in rows:
        try:
            content = convert_row(row, plan.sets[row.set], formats[row.set])
            if cleaner is not None and (reason := cleaner.check(content, row.where)):
                yield row, None, reason, True
                continue
            yield row, canonical_line(content), None, False
        except RowRefused as refusal:
            yield row, None, str(refusal), False


def _refused_line(row: "Row", reason: str | None, aside: bool) -> str:
    told: dict[str, Any] = {"where": row.where, "reason": reason, "on_purpose": aside, "row": row.record}
    return json.dumps(told, ensure_ascii=True, default=str)


def _check_free(path: Path, read: Iterable[str], force: bool) -> None:
    if not path.parent.is_dir():
        raise ConfigError(f"{path} cannot be written: there is no folder {path.parent}")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a file")
    if any(Path(one).exists() and path.exists() and path.samefile(one) for one in read):
        raise ConfigError(f"{path} is one of the files that are read; choose another name for --out")
    if path.exists() and not force:
        raise ConfigError(f"{path} is there already; choose another name, or give --force to replace it")


@contextmanager
def _written(path: Path) -> "Iterator[IO[str]]":
    """A text file that appears at `path` once it is whole; if anything fails, nothing changes there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("x", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise RunError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)
