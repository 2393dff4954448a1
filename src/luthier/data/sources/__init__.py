"""Rows out of files: local ones, the hub's, those behind URLs, and streams; text and tables, packed or not.

What is wrong with a file stops the run (`DataError`, with the file's name). What is wrong with one line is that
row's fault and goes to the ledger; the rows around it are read. Every row comes with the position of the next
one, and a source can be opened at any of them without reading what lies before.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from luthier.config.data_section import SetSection
from luthier.data.sources.row import Row
from luthier.data.sources.source import Position, Source, open_source
from luthier.errors import DataError

__all__ = ["Position", "Row", "Source", "list_files", "open_source", "read_rows"]


def list_files(paths: Sequence[str | Path]) -> list[Path]:
    """The data files behind the paths on this machine, folders opened, in the order they are read.

    Raises:
        DataError: if a path is missing, of an unknown kind, or a folder without data.
    """
    found = [file.local() for one in _sets(paths).sets for file in one.files]
    return [path for path in found if path is not None]


def read_rows(paths: Sequence[str | Path]) -> Iterator[Row]:
    """All rows of all files, one at a time.

    Raises:
        DataError: if a file cannot be read at all, naming it.
    """
    return (row for row, _ in _sets(paths).rows())


def _sets(paths: Sequence[str | Path]) -> Source:
    if not paths:
        raise DataError("no data is named")
    return open_source([SetSection(path=str(path)) for path in paths])
