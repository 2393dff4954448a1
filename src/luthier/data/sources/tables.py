"""Rows out of table files: parquet, and Arrow's file and stream formats.

A parquet file is opened at a row group; only the group that holds the position is read before it. Arrow files
are mapped into memory, so batches that are passed over are not read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from luthier.data.sources.files import DataFile
from luthier.data.sources.row import Parsed
from luthier.errors import DataError

_BATCH_ROWS = 1024


def read_parquet(file: DataFile, at: int, inside: int, line: int) -> Iterator[Parsed]:
    """The rows from row `inside` of row group `at` on.

    Raises:
        DataError: if the file is broken or cannot be read.
    """
    import pyarrow.parquet

    with _faults_of(file, "parquet"), pyarrow.parquet.ParquetFile(file.local() or file.open()) as table:
        for group in range(at, table.num_row_groups):
            seen = 0
            for batch in table.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group]):
                num_rows = len(batch)
                if seen + num_rows <= inside:
                    seen += num_rows
                    continue
                skipped = max(0, inside - seen)
                seen += skipped
                for record in batch.slice(skipped).to_pylist():
                    seen += 1
                    line += 1
                    yield (
                        line,
                        {key: without_nulls(value) for key, value in record.items()},
                        None,
                        group,
                        seen,
                        line,
                    )
            inside = 0


def read_arrow(file: DataFile, at: int, inside: int, line: int) -> Iterator[Parsed]:
    """The rows from row `inside` of record batch `at` on.

    Raises:
        DataError: if the file is broken or cannot be read.
    """
    with _faults_of(file, "Arrow"), _mapped(file) as source:
        for number, batch in _batches(source, at):
            if number < at:
                continue
            # Slices, so that a batch of a million rows is not turned into objects at once.
            for start in range(inside, len(batch), _BATCH_ROWS):
                for offset, record in enumerate(batch.slice(start, _BATCH_ROWS).to_pylist(), start=start + 1):
                    line += 1
                    plain = {key: without_nulls(value) for key, value in record.items()}
                    yield line, plain, None, number, offset, line
            inside = 0


def count_parquet(file: DataFile) -> int:
    """How many rows a parquet file says it has."""
    import pyarrow.parquet

    with _faults_of(file, "parquet"), pyarrow.parquet.ParquetFile(file.local() or file.open()) as table:
        return table.metadata.num_rows


def count_arrow(file: DataFile) -> int:
    """How many rows an Arrow file has; only the sizes of its batches are read."""
    with _faults_of(file, "Arrow"), _mapped(file) as source:
        return sum(len(batch) for _, batch in _batches(source, 0))


def without_nulls(value: Any) -> Any:
    """A table's value without the nulls that the table put in: all rows of a column share one set of fields."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None or k == "content"}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


@contextmanager
def _mapped(file: DataFile) -> Iterator[Any]:
    import pyarrow

    path = file.local()
    with pyarrow.memory_map(str(path)) if path else pyarrow.PythonFile(file.open(), "r") as source:
        yield source


def _batches(source: Any, at: int) -> Iterator[tuple[int, Any]]:
    """The record batches with their numbers, from `at` on where the format can tell where that is."""
    import pyarrow

    if source.read(6) == b"ARROW1":
        source.seek(0)
        table = pyarrow.ipc.open_file(source)
        for number in range(at, table.num_record_batches):
            yield number, table.get_batch(number)
        return
    source.seek(0)
    yield from enumerate(pyarrow.ipc.open_stream(source))


@contextmanager
def _faults_of(file: DataFile, what: str) -> Iterator[None]:
    """Says of what the library finds wrong which file it is about."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as fault:
        if isinstance(fault, OSError) and fault.errno is not None:  # the disk's; pyarrow's own have no number
            raise DataError(f"{file.name} cannot be read: {fault.strerror or fault}") from fault
        reason = (str(fault) or type(fault).__name__).splitlines()[0]
        raise DataError(
            f"{file.name} is not a whole {what} file: {reason}; write or fetch it again"
        ) from fault
