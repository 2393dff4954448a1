"""What was found of each row, kept on disk as soon as it is known, so that an evaluation that was killed goes on.

One JSON object a line. The first says what was evaluated (`about`); a journal whose first line says anything else is
never read as one's own. Then come, in the order in which they were found, `predicted` lines (how likely the tokens of a
row are) and `answered` lines (what the model wrote). A line that was cut by a kill does not count.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from luthier.errors import RunError
from luthier.runs.atomic import explain
from luthier.runs.lines import LineFile, read_lines


@dataclass(frozen=True)
class Predicted:
    """How well the tokens to learn of one example are predicted."""

    row: int
    """The row's number in the data."""
    loss: float
    """Σ weight · -ln p of its tokens, in nats."""
    weight: float
    """Σ weight."""
    nll: float
    """Σ -ln p of its learned tokens, all alike, in nats."""
    tokens: int
    bytes: float | None = None
    """Bytes of UTF-8 that these tokens stand for, of plain text."""


@dataclass(frozen=True)
class Answered:
    """What the model wrote for one example."""

    row: int
    question: str
    """The whole prompt, as text."""
    reference: str
    answer: str
    tokens: int
    """Tokens of the answer."""
    finish: str
    """What ended it: `eos`, or `length`."""
    seconds: float
    """Time since the answer before it; the sum over all is the time that answering took."""


@dataclass
class Journal:
    """What is known so far, by the example's place in the data."""

    predicted: dict[int, Predicted] = field(default_factory=dict)
    answered: dict[int, Answered] = field(default_factory=dict)
    path: Path | None = None
    _file: LineFile | None = None

    @classmethod
    def open(cls, path: Path, about: Mapping[str, Any]) -> Self:
        """The journal at `path`, gone on with if it is there.

        Raises:
            RunError: it is of another evaluation, is damaged, or cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise explain(error, path) or error from error
        file = LineFile(path)  # takes a line away that was cut
        lines = read_lines(path)
        if not lines:
            file.add(json.dumps({"about": about}))
        elif lines[0].get("about") != dict(about):
            file.close()
            raise RunError(
                f"{path} was written by an evaluation of something else; move it away, or keep the results elsewhere"
            )
        found = cls(path=path, _file=file)
        for line in lines[1:]:
            found._read(line)
        return found

    def predict(self, place: int, found: Predicted) -> None:
        """Keeps how well an example is predicted."""
        self.predicted[place] = found
        self._write("predicted", place, found)

    def answer(self, place: int, found: Answered) -> None:
        """Keeps what the model wrote for an example."""
        self.answered[place] = found
        self._write("answered", place, found)

    def close(self) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, kind: str, place: int, found: Predicted | Answered) -> None:
        if self._file is not None:
            self._file.add(json.dumps({"kind": kind, "example": place, **asdict(found)}, ensure_ascii=False))

    def _read(self, line: dict[str, Any]) -> None:
        kind, place = line.pop("kind", None), line.pop("example", None)
        try:
            if kind == "predicted":
                self.predicted[int(place)] = Predicted(**line)
            elif kind == "answered":
                self.answered[int(place)] = Answered(**line)
        except TypeError as error:
            raise RunError(f"{self.path} has a line that cannot be read ({error}); move it away") from error


def digest(*parts: object) -> str:
    """A short name for all that results depend on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]
