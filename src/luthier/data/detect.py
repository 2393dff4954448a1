"""Which format a row has, read from the names of its columns, or as its data set says.

A format is a file in `formats/` with

    SHAPES    sets of columns, any of which make a row this format; the first one is the usual. None: it must be named
    NAMED     (if any) sets of columns that do only where the data set names the format
    OPTIONAL  columns it can use besides
    YIELDS    formats that win where a row has the columns of both
    convert   (record, tags) -> Content; raises RowRefused

Of several formats that fit, one whose columns are part of another's loses. If two are left, nobody can tell
which is meant, and the row is refused. Columns that hold null count only where nothing else would fit.
"""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache
from typing import Any

from luthier.data import formats
from luthier.data.content import Content
from luthier.data.turns import Tags
from luthier.data.values import listed
from luthier.errors import DataError, RowRefused

MEDIA = frozenset({"image", "images", "video", "videos", "audio", "audios"})
"""Pictures and sounds that the text speaks of: without them the row says something else."""
MEANINGFUL = MEDIA | {"label", "kto_tag", "chosen", "rejected", "rejected_response"}
"""With these also whether an answer is a good one."""


@dataclass(frozen=True, eq=False)
class Format:
    """A file of `formats/`."""

    name: str
    shapes: tuple[tuple[str, ...], ...]
    named: tuple[tuple[str, ...], ...]
    optional: tuple[str, ...]
    yields: tuple[str, ...]
    converter: Callable[[dict[str, Any], Tags], Content]

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it usually has."""
        return self.sufficient[0]

    @property
    def sufficient(self) -> tuple[tuple[str, ...], ...]:
        """The sets of columns to tell people of; any of them will do."""
        return self.shapes or self.named

    @cached_property
    def own(self) -> frozenset[str]:
        """Every column it can use."""
        return frozenset(self.optional).union(*self.shapes, *self.named)

    def convert(self, record: dict[str, Any], tags: Tags | None = None) -> Content:
        """What one row says.

        Raises:
            RowRefused: if a column is missing or what it holds cannot be used.
        """
        if not self.fits(frozenset(record)):
            nearest = min(self.sufficient, key=lambda shape: sum(name not in record for name in shape))
            missing = next(name for name in nearest if name not in record)
            raise RowRefused(f"the row has no `{missing}`; its fields are {listed(record)}")
        for column in self.strangers:
            if column in record and record[column] not in (None, [], ""):
                raise RowRefused(_meaningful(column, record[column]))
        return self.converter(record, tags or Tags())

    @cached_property
    def strangers(self) -> tuple[str, ...]:
        """Columns it cannot use that would change what a row means."""
        strange = MEDIA if self.name == "prompt" else MEANINGFUL  # a prompt keeps every column for its reward
        return tuple(sorted(strange - self.own))

    def shape_of(self, names: frozenset[str]) -> tuple[str, ...] | None:
        """The largest of its shapes that these columns have."""
        fitting = [shape for shape in self.shapes if names >= set(shape)]
        return max(fitting, key=len) if fitting else None

    def claim(self, names: frozenset[str]) -> frozenset[str]:
        """Those columns that speak for this format."""
        return frozenset().union(*(shape for shape in self.shapes if names >= set(shape)))

    @lru_cache(maxsize=4096)  # noqa: B019 - formats live as long as the program
    def used(self, names: frozenset[str]) -> frozenset[str]:
        """Those columns it reads of a row that has these."""
        shape = self.shape_of(names) or next((one for one in self.named if names >= set(one)), ())
        return names & frozenset((*shape, *self.optional))

    @lru_cache(maxsize=4096)  # noqa: B019 - formats live as long as the program
    def fits(self, names: frozenset[str]) -> bool:
        """Whether columns of these names do where the data set names this format."""
        return self.shape_of(names) is not None or any(names >= set(shape) for shape in self.named)


def _meaningful(column: str, value: Any) -> str:
    if column in MEDIA:
        number = f" ({len(value)})" if isinstance(value, list) else ""
        return (
            f"the row has `{column}`{number}, and images, video and sound are not supported yet. Leave such rows out, "
            f"or map `{column}` to `-` in `columns` to train on the text alone"
        )
    return (
        f"the row has `{column}`, which changes what it means and is not read in this format; "
        f"map `{column}` to `-` in `columns` to train on the rest alone"
    )


@cache
def known_formats() -> tuple[Format, ...]:
    """Every format, by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(formats.__path__))
    modules = [(name, importlib.import_module(f"{formats.__name__}.{name}")) for name in names]
    return tuple(
        Format(name, m.SHAPES, getattr(m, "NAMED", ()), m.OPTIONAL, m.YIELDS, m.convert)
        for name, m in modules
    )


def detect(record: dict[str, Any]) -> Format | None:
    """The format of a row; None if it has the columns of none.

    Raises:
        RowRefused: if it has those of several formats, so that it is not clear which is meant.
    """
    filled = frozenset([name for name, value in record.items() if value is not None])
    return detect_columns(filled) or detect_columns(frozenset(record))


@lru_cache(maxsize=4096)
def detect_columns(names: frozenset[str]) -> Format | None:
    """The format that columns of these names make, as `detect` says."""
    fitting = {format: format.claim(names) for format in known_formats() if format.claim(names)}
    left = [
        format
        for format, claim in fitting.items()
        if not any(
            claim < other or rival.name in format.yields
            for rival, other in fitting.items()
            if rival != format
        )
    ]
    if len(left) > 1:
        raise RowRefused(
            "rows have the columns of several formats: "
            + "; ".join(f"{format.name} ({', '.join(format.shape_of(names) or ())})" for format in left)
            + ". Say which one is meant with `format`, or remove the columns that are not"
        )
    return left[0] if left else None


def detect_table(records: Iterable[dict[str, Any]], file: str) -> Format:
    """The format of a file, from its first rows.

    Raises:
        DataError: if no row has the columns of a format, with what was found and what there is.
    """
    found: dict[str, None] = {}
    unclear: DataError | None = None
    for record in records:
        try:
            if format := detect(record):
                return format
        except RowRefused as refusal:
            unclear = unclear or refusal
        found.update(dict.fromkeys(map(str, record)))
    if unclear:
        raise DataError(f"{file}: {unclear}") from None
    raise DataError(f"{file}: {nothing_fits(found)}")


def nothing_fits(found: Iterable[str]) -> str:
    """What to say where no format has these columns."""
    found = list(found)
    known = []
    for format in (one for one in known_formats() if one.shapes):
        wanted = [name for name in format.optional if name not in format.columns]
        more = f" (and, if wanted, {', '.join(wanted)})" if wanted else ""
        known.append(f"  {format.name}: {', '.join(format.columns)}{more}")
    return (
        f"no known format has the columns that were found: {listed(found)}.\n"
        f"Rename them to those of a format, or map them with `columns`:\n" + "\n".join(known)
    )
