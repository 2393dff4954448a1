"""Which of two models answers better, question by question: pairs in a blind order, votes on disk, and the win rate.

Which answer of a pair is called A is drawn from the seed and the row. Equal answers are ties without being asked about.
The win rate is the share of wins among the pairs that one of the two has won, with Wilson's 95 % interval; ties are
counted apart.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

from luthier.errors import RunError
from luthier.evaluate.intervals import Interval, wilson
from luthier.evaluate.journal import digest
from luthier.evaluate.task import Evaluation
from luthier.runs.lines import LineFile, read_lines

Winner = Literal["first", "second", "tie"]


@dataclass(frozen=True)
class Pair:
    """Two answers to one question."""

    key: str
    question: str
    reference: str
    first: str
    """The first model's answer."""
    second: str
    swapped: bool = False
    """Whether the second model's answer is called A."""

    @property
    def shown(self) -> tuple[str, str]:
        """The answers A and B."""
        return (self.second, self.first) if self.swapped else (self.first, self.second)

    def winner(self, letter: str) -> Winner:
        """Who wins where A or B is named; anything else is a tie."""
        if letter not in ("A", "B"):
            return "tie"
        return "second" if (letter == "A") == self.swapped else "first"

    def the_other_way(self) -> "Pair":
        """The same pair with A and B exchanged."""
        return Pair(self.key, self.question, self.reference, self.first, self.second, not self.swapped)


def pairs_of(first: Evaluation, second: Evaluation, seed: int = 0) -> list[Pair]:
    """The answers of two models to the questions that both were asked."""
    found: list[Pair] = []
    for key, one in first.answers.items():
        if (other := second.answers.get(key)) is not None:
            drawn = hashlib.sha256(f"{seed}/{key}".encode()).digest()[0] & 1
            found.append(Pair(key, one.question, one.reference, one.answer, other.answer, bool(drawn)))
    return found


class Ballot:
    """Votes that are on the disk as soon as they are cast.

    Args:
        path: where they are.
        about: what is voted on; a file about anything else is refused.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self._file = path, LineFile(path)
        lines = read_lines(path)
        if not lines:
            self._file.add(json.dumps({"about": about}))
        elif lines[0].get("about") != dict(about):
            raise RunError(f"{path} has votes on something else; move it away")
        self.votes: dict[str, Winner] = {line["key"]: line["winner"] for line in lines[1:]}

    @classmethod
    def of(
        cls, folder: Path, names: tuple[str, str], models: tuple[Evaluation, Evaluation], by: str, seed: int
    ) -> Self:
        """The ballot of two models' results and a judge, in a folder."""
        results = [one.journal.name if one.journal else "" for one in models]
        about = {"version": 1, "names": list(names), "results": results, "by": by, "seed": seed}
        return cls(folder / f"votes-{digest(about)[:8]}.jsonl", about)

    def cast(self, pair: Pair, winner: Winner, **more: Any) -> None:
        """Counts a vote."""
        self.votes[pair.key] = winner
        self._file.add(json.dumps({"key": pair.key, "winner": winner, "swapped": pair.swapped, **more}))

    def open_pairs(self, pairs: Sequence[Pair]) -> list[Pair]:
        """Those that nobody has voted on; equal answers become ties."""
        for pair in pairs:
            if pair.key not in self.votes and pair.first.strip() == pair.second.strip():
                self.cast(pair, "tie", equal=True)
        return [pair for pair in pairs if pair.key not in self.votes]

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True)
class Outcome:
    """How the second model did against the first."""

    wins: int
    losses: int
    ties: int

    @property
    def rate(self) -> float | None:
        """Share of wins among the pairs that were won by either."""
        return self.wins / (self.wins + self.losses) if self.wins + self.losses else None

    @property
    def interval(self) -> Interval | None:
        """Wilson's 95 % interval of the rate."""
        decided = self.wins + self.losses
        return wilson(self.wins, decided) if decided else None


def outcome(votes: Mapping[str, Winner]) -> Outcome:
    """Counts votes."""
    counts = {kind: sum(vote == kind for vote in votes.values()) for kind in ("second", "first", "tie")}
    return Outcome(counts["second"], counts["first"], counts["tie"])
