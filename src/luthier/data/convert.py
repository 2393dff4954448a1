"""From a row to what it says: the format of each row of a data set, its columns, and what to tell about them."""

import difflib
from collections.abc import Iterable
from typing import Any

from luthier.config.data_section import SetSection
from luthier.data.content import Content, Prompt, Text
from luthier.data.conversation import Message
from luthier.data.detect import MEANINGFUL, Format, detect, detect_table, known_formats, nothing_fits
from luthier.data.notes import Notes
from luthier.data.sources import Row
from luthier.data.turns import tags_from
from luthier.data.values import listed
from luthier.errors import DataError, RowRefused

NOT_READ = "-"
"""What `data.sets[].columns` maps a column to that is to be left alone."""
_PLACEHOLDERS = ("<image>", "<video>", "<audio>")


class Formats:
    """How the rows of one data set are read.

    Every row has the format of its own columns, unless the data set names one.

    Raises:
        DataError: if the data set names a format, a column or a tag that there is not.
    """

    def __init__(self, section: SetSection):
        self.path = section.path
        self._fixed = self._known(section.format)
        self._tags = tags_from(section.tags)
        self._own_name = {ours: own for ours, own in section.columns.items() if own != NOT_READ}
        self._our_name = {own: ours for ours, own in self._own_name.items()}
        self._hidden = frozenset(section.columns) - frozenset(self._our_name)
        self._check_columns(section.columns)

    def check(self, records: Iterable[dict[str, Any]], file: str) -> None:
        """Looks at the first rows of a file.

        Raises:
            DataError: if none of them has the columns of a format, with what was found and what there is.
        """
        renamed = [self._renamed(record) for record in records]
        if self._fixed is None:
            detect_table(renamed, file)
        elif renamed and not any(self._fixed.fits(frozenset(record)) for record in renamed):
            wanted = " or ".join(", ".join(map(self._shown, shape)) for shape in self._fixed.sufficient)
            raise DataError(
                f"{file}: `format` is {self._fixed.name}, which needs the columns {wanted}; the first rows have "
                f"{listed(renamed[0])}. Correct `format`, or map the names with `columns`"
            )

    def convert(self, row: Row, notes: Notes, *, keeps: bool = False) -> Content:
        """What a row says; what is worth telling about it goes to `notes`. `keeps`: other columns are used, too.

        Raises:
            RowRefused: if it cannot be read, has no known format, or holds what cannot be used.
        """
        if row.record is None:
            raise RowRefused(row.fault or "the row cannot be read")
        record = self._renamed(row.record)
        format = self._fixed or detect(record)
        if format is None:
            raise RowRefused(self._nothing_fits(record))
        try:
            content = format.convert(record, self._tags)
        except RowRefused as refusal:
            raise self._in_own_names(refusal) from None
        self._note(row, record, format, content, notes, keeps)
        return content

    def rest(self, row: Row) -> dict[str, Any]:
        """The columns of a row that its format does not read. Raises RowRefused as `convert` does."""
        record = self._renamed(row.record or {})
        format = self._fixed or detect(record)
        used = format.used(frozenset(record)) if format is not None else frozenset()
        return {name: value for name, value in record.items() if name not in used}

    def _known(self, name: str | None) -> Format | None:
        names = [format.name for format in known_formats()]
        if name is None or name in names:
            return known_formats()[names.index(name)] if name else None
        near = difflib.get_close_matches(name, names, 1)
        hint = f"did you mean `{near[0]}`?" if near else f"it must be one of {', '.join(names)}"
        raise DataError(f"the `format` of {self.path} is `{name}`, which is none; {hint}")

    def _check_columns(self, columns: dict[str, str]) -> None:
        formats = [self._fixed] if self._fixed else known_formats()
        known = sorted(frozenset(MEANINGFUL).union(*(format.own for format in formats)))
        for name in columns:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(known)}"
                of = f"the format {self._fixed.name}" if self._fixed else "any format"
                raise DataError(f"`columns` of {self.path} has `{name}`, which is no column of {of}; {hint}")

    def _renamed(self, record: dict[str, Any]) -> dict[str, Any]:
        """The record under our names; what is not to be read, or stands in the place of another, is left out."""
        if not self._hidden and not self._our_name:
            return record
        return {
            self._our_name.get(name, name): value
            for name, value in record.items()
            if name in self._our_name or (name not in self._hidden and name not in self._own_name)
        }

    def _shown(self, column: str) -> str:
        return f"`{self._own_name.get(column, column)}`"

    def _nothing_fits(self, record: dict[str, Any]) -> str:
        known = frozenset().union(*(format.own for format in known_formats()))
        for name in record:
            near = difflib.get_close_matches(name.lower(), known, 1, 0.8)
            if near and name not in known:
                return (
                    f"no known format has the columns {listed(record)}; did you mean `{near[0]}` by `{name}`?"
                )
        return nothing_fits(record).splitlines()[0]

    def _in_own_names(self, refusal: RowRefused) -> RowRefused:
        """The refusal with the data set's names of columns."""
        text = str(refusal)
        for ours, own in self._own_name.items():
            text = text.replace(f"`{ours}`", f"`{own}`")
        return RowRefused(text)

    def _note(
        self, row: Row, record: dict[str, Any], format: Format, content: Content, notes: Notes, keeps: bool
    ) -> None:
        notes.count_format(row.file, format.name)
        if not (keeps or isinstance(content, Prompt)):
            used = format.used(frozenset(record))
            unused = [name for name, value in record.items() if value is not None and name not in used]
            if unused:
                what = "kept but not learned" if isinstance(content, Text) else "not used"
                notes.add(f"columns that are {what}", row.where, unused)
        for placeholder in _placeholders(content):
            name = placeholder.strip("<>")
            notes.add(
                f"`{placeholder}` is written and there is no `{name}s`; it is learned as any other text",
                row.where,
            )


def formats_of(section: SetSection) -> Formats:
    """How the rows of a data set are read. Raises DataError as `Formats` does."""
    return Formats(section)


def convert_row(
    row: Row, section: SetSection, formats: Formats, notes: Notes | None = None, *, keeps: bool = False
) -> Content:
    """What a row of a data set says; `formats` are those of `section`. Raises RowRefused if it cannot be read."""
    return formats.convert(row, notes if notes is not None else Notes(), keeps=keeps)


def _placeholders(content: Content) -> list[str]:
    messages: Iterable[Message] = getattr(content, "messages", None) or getattr(content, "context", ())
    texts = [text for message in messages if isinstance(text := message.get("content"), str)]
    return [word for word in _PLACEHOLDERS if any(word in text for text in texts)]
