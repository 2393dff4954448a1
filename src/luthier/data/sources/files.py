"""Files that rows are read from, wherever they lie, and how their bytes are opened."""

import gzip
import io
import stat
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

from luthier.data.sources.line_ends import with_newlines
from luthier.data.sources.signs import EVERY_BYTES, Signs
from luthier.errors import DataError

_BUFFER = 1 << 18
_SAMPLE = 1 << 23


class DataFile(Protocol):
    """One file of rows. Its parts can be sent to another process."""

    @property
    def name(self) -> str:
        """What people know it by; a row's `file`."""
        ...

    @property
    def kind(self) -> str:
        """One of `kinds.KINDS`."""
        ...

    @property
    def packed(self) -> str:
        """`.gz`, `.zst` or empty."""
        ...

    @property
    def size(self) -> int | None:
        """Bytes as it lies there; None where that is not known."""
        ...

    @property
    def is_here(self) -> bool:
        """Whether it lies on this machine's disk already."""
        ...

    def local(self) -> Path | None:
        """The file on this machine's disk, fetched if it has to be; None if it can only be read as a stream."""
        ...

    def open(self) -> BinaryIO:
        """Its bytes, as they lie there."""
        ...

    def stamp(self) -> str:
        """What changes when the content does, for files that are not on the disk."""
        ...


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine's disk."""

    name: str
    kind: str
    packed: str = ""

    @property
    def size(self) -> int | None:
        """Bytes on disk."""
        try:
            return Path(self.name).stat().st_size
        except OSError as fault:
            raise DataError(f"{self.name} cannot be read: {fault.strerror or fault}") from fault

    @property
    def is_here(self) -> bool:
        """Always."""
        return True

    def local(self) -> Path | None:
        """The file itself."""
        return Path(self.name)

    def open(self) -> BinaryIO:
        """Its bytes."""
        return Path(self.name).open("rb", buffering=_BUFFER)

    def stamp(self) -> str:
        """Its size and when it was last written, in nanoseconds."""
        facts = Path(self.name).stat()
        return f"{facts.st_size} bytes of {facts.st_mtime_ns}"


@dataclass
class StreamFile:
    """JSON lines that come once: standard input (`-`) or a named pipe."""

    name: str
    kind: str = "lines"
    packed: str = ""
    size: int | None = None
    passed: int = 0
    """Bytes that were taken from it."""
    _stream: BinaryIO | None = field(default=None, repr=False, compare=False)

    @property
    def is_here(self) -> bool:
        """Never."""
        return False

    def local(self) -> Path | None:
        """Nothing: it lies nowhere."""
        return None

    def open(self) -> BinaryIO:
        """The stream where it stands. Closing is left to the end of the process: it cannot be opened again."""
        stream = self._stream
        if stream is None:
            stream = sys.stdin.buffer if self.name == "-" else Path(self.name).open("rb", _BUFFER)  # noqa: SIM115
            self._stream = stream
        return stream

    def stamp(self) -> str:
        """The same always: what will come is not known."""
        return "stream"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None}


def is_pipe(path: Path) -> bool:
    """Whether a path is a named pipe."""
    try:
        return stat.S_ISFIFO(path.stat().st_mode)
    except OSError:
        return False


@contextmanager
def opened(file: DataFile, at: int, signs: Signs | None = None) -> Iterator[BinaryIO]:
    """The file's unpacked bytes from an offset on.

    What lies before the offset is not read, except where the file is packed: then it is unpacked and let go, which
    `signs` tells.

    Raises:
        DataError: if the file is cut short or broken, shorter than the offset, or cannot be read.
    """
    if isinstance(file, StreamFile):
        if at != file.passed:
            raise DataError(_not_again(file, at))
        yield file.open()
        return
    what = {".gz": "gzip", ".zst": "zstd"}.get(file.packed, "")
    try:
        with file.open() as raw, _unpacked(raw, file.packed) as unpacked:
            stream = with_newlines(unpacked)
            if at:
                _go_to(stream, at, file, signs or Signs())
            yield stream
    except (EOFError, gzip.BadGzipFile, zlib.error) as fault:
        raise DataError(f"{file.name} is not a whole gzip file: {fault}; write or fetch it again") from fault
    except OSError as fault:
        if what and fault.errno is None:  # the unpacker's; the disk's have a number
            raise DataError(
                f"{file.name} is not a whole {what} file: {fault}; write or fetch it again"
            ) from fault
        raise DataError(f"{file.name} cannot be read: {fault.strerror or fault}") from fault


@contextmanager
def _unpacked(raw: BinaryIO, packed: str) -> Iterator[BinaryIO]:
    """The text of a packed file, buffered so that its lines and its first bytes can be had cheaply."""
    if packed == ".gz":
        with gzip.GzipFile(fileobj=raw) as stream:
            yield cast(BinaryIO, io.BufferedReader(cast(Any, stream), _BUFFER))
    elif packed == ".zst":
        import pyarrow

        with pyarrow.CompressedInputStream(raw, "zstd") as stream:
            yield cast(BinaryIO, io.BufferedReader(cast(Any, stream), _BUFFER))
    else:
        yield raw


def _go_to(stream: BinaryIO, at: int, file: DataFile, signs: Signs) -> None:
    if not file.packed:
        end = stream.seek(0, io.SEEK_END)
        missing = max(0, at - end)
        stream.seek(at)
    else:
        missing = at
        while missing and (passed := len(stream.read(min(missing, EVERY_BYTES)))):
            missing -= passed
            signs.tell(f"{file.name}: unpacked {at - missing:,} of {at:,} bytes, to where reading goes on")
    if missing:
        raise DataError(
            f"{file.name} is shorter than it was: reading is to go on at byte {at}, {missing} behind its end. "
            "Put the file back as it was"
        )


def _not_again(file: StreamFile, at: int) -> str:
    if at == 0:
        return f"{file.name} is a stream and was read already: it can be read once. Save it as a file to read it again"
    return (
        f"{file.name} is a stream, so reading cannot go on at byte {at} ({file.passed} have passed). "
        "Save it as a file to continue a run over it"
    )


def expansion(file: DataFile) -> float:
    """How much larger a file's text is than the file, judged by its beginning; 1 if it is not packed."""
    if not file.packed:
        return 1.0
    with file.open() as raw, _unpacked(raw, file.packed) as stream:
        unpacked = len(stream.read(_SAMPLE))
        return max(1.0, unpacked / max(1, raw.tell()))
