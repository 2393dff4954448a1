"""What became of every row: kept, truncated, or dropped with its reason. The counts add up.

Rows that are left out on purpose (duplicates, other languages) are dropped too, but are no fault of the data.
"""

import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Self

from luthier.errors import DataError

Status = Literal["kept", "truncated", "dropped"]
MAX_EXAMPLES = 5
MAX_REASONS = 500
"""More than that, and what is in memory would grow with the data."""
OTHERS = "other reasons"


@dataclass
class Ledger:
    """The account of the rows that were read."""

    kept: int = 0
    truncated: int = 0
    dropped: int = 0
    left_out: int = 0
    """Earlier answers, in rows that are used, whose reasoning the chat template leaves out."""
    reasons: Counter[str] = field(default_factory=Counter)
    """How often rows were dropped for a reason; reasons that differ in numbers or quoted text are one."""
    examples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    """For each of the reasons, where it was met first, and its full words there."""
    set_aside: int = 0
    """Rows, among those dropped, that were left out on purpose."""
    tokens: Counter[str] = field(default_factory=Counter)
    """Tokens of the rows that can be learned from, by data set."""

    @property
    def read(self) -> int:
        """Rows that were read."""
        return self.kept + self.truncated + self.dropped

    @property
    def usable(self) -> int:
        """Rows that can be learned from."""
        return self.kept + self.truncated

    @property
    def faults(self) -> int:
        """Rows that cannot be used."""
        return self.dropped - self.set_aside

    def add(self, status: Status, where: str, reason: str | None = None, *, set_aside: bool = False) -> None:
        """Enters one row; `where` is its file:line. Every dropped row has a reason.

        `set_aside` says that it was dropped on purpose.
        """
        assert status != "dropped" or reason, "a dropped row has a reason"
        assert status == "dropped" or not set_aside, "what is set aside is dropped"
        setattr(self, status, getattr(self, status) + 1)
        self.set_aside += set_aside
        if status == "dropped" and reason:
            self._count(_kind(reason), 1, [(where, reason)])

    def include(self, other: "Ledger") -> None:
        """Adds the account of rows that come after those of this one."""
        for name in ("kept", "truncated", "dropped", "left_out", "set_aside"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.tokens.update(other.tokens)
        for kind, count in other.reasons.items():
            self._count(kind, count, other.examples[kind])

    def check(self, max_drop_fraction: float) -> None:
        """Stops a run whose data is not what its owner thinks.

        Raises:
            DataError: if no row is left, or more than this share was dropped; with the reasons.
        """
        if not self.usable:
            raise DataError(
                f"none of the {self.read} rows can be used.\n{self._top()}\nCorrect the data in data.path"
            )
        if self.faults > max_drop_fraction * self.read:
            raise DataError(
                f"{self.faults} of {self.read} rows ({self.faults / self.read:.1%}) cannot be used; "
                f"data.max_drop_fraction allows {max_drop_fraction:.1%}.\n{self._top()}\n"
                "Correct these rows, or raise data.max_drop_fraction to go on without them"
            )

    def summary(self) -> str:
        """The account as a few lines for people."""
        head = f"{self.read} rows: {self.kept} kept, {self.truncated} truncated, {self.dropped} dropped"
        if self.set_aside:
            head += f" ({self.set_aside} of them on purpose)"
        if self.left_out:
            head += f"\nthe chat template leaves out the reasoning of {self.left_out} earlier answers"
        if len(self.tokens) > 1:
            each = ", ".join(f"{Path(name).name} {number:,}" for name, number in self.tokens.items())
            head += f"\ntokens by data set: {each}"
        return f"{head}\n{self._top()}" if self.reasons else head

    def to_json(self) -> dict[str, Any]:
        """The account as plain JSON values."""
        return {
            "read": self.read,
            **asdict(self),
            "reasons": dict(self.reasons.most_common()),
            "tokens": dict(self.tokens),
        }

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """The account that `to_json` wrote."""
        examples = {
            kind: [(where, reason) for where, reason in seen] for kind, seen in values["examples"].items()
        }
        ledger = cls(
            values["kept"],
            values["truncated"],
            values["dropped"],
            values["left_out"],
            Counter(values["reasons"]),
            examples,
            values.get("set_aside", 0),
            Counter(values.get("tokens", {})),
        )
        assert ledger.read == values["read"], "every row that was read is accounted for"
        assert ledger.reasons.total() == ledger.dropped, "every dropped row has its reason"
        return ledger

    def _count(self, kind: str, count: int, seen: list[tuple[str, str]]) -> None:
        if kind not in self.reasons and len(self.reasons) >= MAX_REASONS:
            kind = OTHERS
        self.reasons[kind] += count
        mine = self.examples.setdefault(kind, [])
        mine.extend(seen[: MAX_EXAMPLES - len(mine)])

    def _top(self, most: int = 5) -> str:
        lines = [self._line(kind, count) for kind, count in self.reasons.most_common(most)]
        if len(self.reasons) > most:
            lines.append(f"  and {len(self.reasons) - most} other reasons")
        return "\n".join(lines)

    def _line(self, kind: str, count: int) -> str:
        where, reason = self.examples[kind][0]
        return (
            f"  {count} x {reason} ({where})"
            if count == 1
            else f"  {count} x {kind} (first {where}: {reason})"
        )


def _kind(reason: str) -> str:
    """A reason without what differs from row to row: quoted text becomes '…', numbers become #."""
    first = reason.splitlines()[0]
    return re.sub(r"[0-9]+", "#", re.sub(r"(?<!\w)(['\"]).*?\1(?!\w)", "'…'", first))[:200]
