"""Which format a table has, read from the names of its columns.

A format is a file in `formats/` with `COLUMNS`, the columns it needs, `OPTIONAL`, those it can use, and
`convert(record) -> Conversation`.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

from luthier.data import formats
from luthier.data.conversation import Conversation
from luthier.errors import DataError, RowRefused

# Pictures that the text speaks of, or whether an answer is a good one: without them the row says something else.
MEANINGFUL = frozenset(
    {"image", "images", "video", "videos", "audio", "audios", "label", "chosen", "rejected"}
)


@dataclass(frozen=True)
class Format:
    """A file of `formats/`."""

    name: str
    columns: tuple[str, ...]
    optional: tuple[str, ...]
    converter: Callable[[dict[str, Any]], Conversation]

    def convert(self, record: dict[str, Any]) -> Conversation:
        """The conversation of one row.

        Raises:
            RowRefused: if a column is missing or what it holds cannot be used.
        """
        missing = [column for column in self.columns if column not in record]
        if missing:
            raise RowRefused(f"the row has no `{missing[0]}`; its fields are {_listed(record)}")
        own = {*self.columns, *self.optional}
        for column in MEANINGFUL - own:
            if record.get(column) not in (None, [], ""):
                raise RowRefused(
                    f"the row has `{column}`, which changes what it means and is not read yet; "
                    "remove the column to train on the rest alone"
                )
        return self.converter(record)


@cache
def known_formats() -> tuple[Format, ...]:
    """Every format, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(formats.__path__))
    modules = [(name, importlib.import_module(f"{formats.__name__}.{name}")) for name in names]
    return tuple(Format(name, m.COLUMNS, m.OPTIONAL, m.convert) for name, m in modules)


def detect(record: dict[str, Any]) -> Format | None:
    """The format whose columns a row has; None if none does.

    Raises:
        DataError: if it has those of several formats, so that it is not clear which is meant.
    """
    fitting = [format for format in known_formats() if all(column in record for column in format.columns)]
    if len(fitting) > 1:
        raise DataError(
            "rows have the columns of several formats: "
            + "; ".join(f"{format.name} ({', '.join(format.columns)})" for format in fitting)
            + ". Remove the columns that are not meant"
        )
    return fitting[0] if fitting else None


def detect_table(records: Iterable[dict[str, Any]], file: str) -> Format:
    """The format of a file, from its first rows.

    Raises:
        DataError: if no row has the columns of a format, with what was found and what there is.
    """
    found: dict[str, None] = {}
    for record in records:
        try:
            if format := detect(record):
                return format
        except DataError as error:
            raise DataError(f"{file}: {error}") from None
        found.update(dict.fromkeys(map(str, record)))
    known = "\n".join(
        f"  {format.name}: {', '.join(format.columns)} (and, if wanted, {', '.join(format.optional)})"
        for format in known_formats()
    )
    raise DataError(
        f"{file}: no known format has the columns that were found: {_listed(found)}.\n"
        f"Rename them to those of a format:\n{known}"
    )


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(f"`{name}`" for name in names[:20]) + (", …" if len(names) > 20 else "") or "none"
