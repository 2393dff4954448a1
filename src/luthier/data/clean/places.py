"""Where rows were read, kept in few bytes: a row is a number, from which its `file:line` is found again."""

from typing import Any, Self

_LINES = 1 << 40


class Places:
    """Turns `file:line` into a number and back."""

    def __init__(self) -> None:
        self._files: list[str] = []
        self._number_of: dict[str, int] = {}
        self._last: dict[str, str] = {}

    def is_unlike_the_last(self, where: str) -> bool:
        """Whether a row lies elsewhere than the row of its file that was asked about before; to be asked of each.

        A row at the place of an earlier one is that row once more (`repeat`) if this is so. Only in `.json` files
        can several rows stand on one line; there the places next to each other are the same.
        """
        file, _, line = where.rpartition(":")
        if not file.lower().endswith((".json", ".json.gz", ".json.zst")):
            return True
        last, self._last[file] = self._last.get(file), line
        return last != line

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

    def state(self) -> list[Any]:
        """What `from_state` needs, as JSON values: the names of the files, and where in them the last rows are."""
        return [list(self._files), dict(self._last)]

    @classmethod
    def from_state(cls, state: Any) -> Self:
        """The places that gave this state."""
        places = cls()
        files, last = state
        places._files, places._last = list(files), dict(last)
        places._number_of = {file: number for number, file in enumerate(places._files)}
        return places
