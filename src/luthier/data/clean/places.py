"""Where rows were read, kept in few bytes: a row is a number, from which its `file:line` is found again."""

from typing import Any, Self

_LINES = 1 << 40


class Places:
    """Turns `file:line` into a number and back."""

    def __init__(self) -> None:
        self._files: list[str] = []
        self._number_of: dict[str, int] = {}

    def number(self, where: str) -> int:
        """The number of a place."""
        file, colon, line = where.rpartition(":")
        if not (
            colon and line.isascii() and line.isdigit() and str(int(line)) == line and int(line) < _LINES - 1
        ):
            file, line = where, "-1"  # some other name of a row
        known = self._number_of.setdefault(file, len(self._files))
        if known == len(self._files):
            self._files.append(file)
        return known * _LINES + int(line) + 1

    def where(self, number: int) -> str:
        """The place that has this number."""
        file, line = divmod(number, _LINES)
        return f"{self._files[file]}:{line - 1}" if line else self._files[file]

    def state(self) -> list[str]:
        """What `from_state` needs: the names of the files."""
        return list(self._files)

    @classmethod
    def from_state(cls, state: Any) -> Self:
        """The places that gave this state."""
        places = cls()
        places._files = list(state)
        places._number_of = {file: number for number, file in enumerate(places._files)}
        return places
