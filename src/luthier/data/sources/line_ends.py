"""Text whose lines end with a carriage return alone, as old programs write it, read as if they ended as usual."""

import io
from typing import Any, BinaryIO, cast

_LOOKED_AT = 1 << 16


def with_newlines(stream: BinaryIO) -> BinaryIO:
    """The stream, from its start, with `\\n` for `\\r` if its beginning has only these. Offsets stay what they are."""
    if not isinstance(stream, io.BufferedReader):
        return stream
    start = stream.peek(_LOOKED_AT)[:_LOOKED_AT]
    if b"\r" not in start[:-1] or b"\n" in start:  # the last byte may be half of a line's end
        return stream
    return cast(BinaryIO, _Translated(stream))


class _Translated(io.BufferedReader):
    """A stream with other ends of lines, that can be moved like the one below it."""

    def __init__(self, stream: Any):
        super().__init__(_Raw(stream), _LOOKED_AT)


class _Raw(io.RawIOBase):
    def __init__(self, stream: Any):
        self._stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._stream.seekable())

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._stream.seek(offset, whence))

    def tell(self) -> int:
        return int(self._stream.tell())

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read1(len(buffer)).replace(b"\r", b"\n")
        buffer[: len(content)] = content
        return len(content)
