"""What became of every row: kept, truncated, or dropped with its reason. The counts add up."""

import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Self

from luthier.errors import DataError

Status = Literal["kept", "truncated", "dropped"]
MAX_EXAMPLES = 5


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

    @property
    def read(self) -> int:
        """Rows that were read."""
        return self.kept + self.truncated + self.dropped

    @property
    def usable(self) -> int:
        """Rows that can be learned from."""
        return self.kept + self.truncated

    def add(self, status: Status, where: str, reason: str | None = None) -> None:
        """Enters one row; `where` is its file:line. Every dropped row has a reason."""
        assert status != "dropped" or reason, "a dropped row has a reason"
        setattr(self, status, getattr(self, status) + 1)
        if status == "dropped" and reason:
            kind = _kind(reason)
            self.reasons[kind] += 1
            seen = self.examples.setdefault(kind, [])
            if len(seen) < MAX_EXAMPLES:
                seen.append((where, reason))

    def check(self, max_drop_fraction: float) -> None:
        """Stops a run whose data is not what its owner thinks.

        Raises:
            DataError: if no row is left, or more than this share was dropped; with the reasons.
        """
        if not self.usable:
            raise DataError(
                f"none of the {self.read} rows can be used.\n{self._top()}\nCorrect the data in data.path"
            )
        if self.dropped > max_drop_fraction * self.read:
            raise DataError(
                f"{self.dropped} of {self.read} rows ({self.dropped / self.read:.1%}) cannot be used; "
                f"data.max_drop_fraction allows {max_drop_fraction:.1%}.\n{self._top()}\n"
                "Correct these rows, or raise data.max_drop_fraction to go on without them"
            )

    def summary(self) -> str:
        """The account as a few lines for people."""
        head = f"{self.read} rows: {self.kept} kept, {self.truncated} truncated, {self.dropped} dropped"
        if self.left_out:
            head += f"\nthe chat template leaves out the reasoning of {self.left_out} earlier answers"
        return f"{head}\n{self._top()}" if self.reasons else head

    def to_json(self) -> dict[str, Any]:
        """The account as plain JSON values."""
        return {"read": self.read, **asdict(self), "reasons": dict(self.reasons.most_common())}

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
        )
        assert ledger.read == values["read"], "every row that was read is accounted for"
        assert ledger.reasons.total() == ledger.dropped, "every dropped row has its reason"
        return ledger

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
