"""The rules that tables are made of, one a key."""

from collections.abc import Callable
from typing import Any

from luthier.migrate.draft import Draft, Rule
from luthier.migrate.readers import is_off


def to(target: str, read: Callable[[Any], Any], note: str = "") -> Rule:
    """Sets Luthier's key to the value that `read` gives."""

    def rule(draft: Draft, key: str, value: Any) -> None:
        draft.map(key, target, read(value), note)

    return rule


def when_on(target: str, read: Callable[[Any], Any]) -> Rule:
    """Sets Luthier's key as `to` does, unless it is switched off."""

    def rule(draft: Draft, key: str, value: Any) -> None:
        if is_off(value):
            draft.needless(key, "is switched off")
        else:
            draft.map(key, target, read(value))

    return rule


def needless(reason: str) -> Rule:
    """Changes nothing, for the reason given."""

    def rule(draft: Draft, key: str, value: Any) -> None:
        draft.needless(key, reason)

    return rule


def absent(reason: str, *off: Any) -> Rule:
    """Has no counterpart, unless it is switched off or has one of the values in `off`."""

    return _unless_off(lambda draft, key: draft.none(key, reason), off)


def blocks(reason: str, *off: Any) -> Rule:
    """Keeps the file from being imported, unless it is switched off or has one of the values in `off`."""

    return _unless_off(lambda draft, key: draft.block(key, reason), off)


def option_of(switch: str, reason: str, *off: Any) -> Rule:
    """Belongs to another key: changes nothing while that one is off, else has no counterpart.

    `off`: values that need nothing either.
    """

    where_on = absent(reason, *off)

    def rule(draft: Draft, key: str, value: Any) -> None:
        if is_off(draft.given.get(switch)):
            draft.needless(key, f"has no effect without {switch}")
        else:
            where_on(draft, key, value)

    return rule


def _unless_off(tell: Callable[[Draft, str], None], off: tuple[Any, ...]) -> Rule:
    """Tells about a key, unless it is switched off or has one of the values in `off`."""

    def rule(draft: Draft, key: str, value: Any) -> None:
        if is_off(value) or _among(value, off):
            draft.needless(key, "is switched off")
        else:
            tell(draft, key)

    return rule


def _among(value: Any, others: tuple[Any, ...]) -> bool:
    """Whether the value is one of the others, of the same kind: true is not 1."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in others)


def unless(switch: str, values: str, reason: str) -> Rule:
    """Has no counterpart, unless another key has one of the values (words), where this one does nothing."""

    def rule(draft: Draft, key: str, value: Any) -> None:
        if is_off(value) or str(draft.given.get(switch, values.split()[0])) in values.split():
            draft.needless(key, f"has no effect with {switch}: {draft.given.get(switch, values.split()[0])}")
        else:
            draft.none(key, reason)

    return rule


def grouped() -> Rule:
    """Read together with other keys by the tool's own code, which says what became of it."""
    return lambda draft, key, value: None


def each(rule: Rule, keys: str) -> dict[str, Rule]:
    """The same rule for several keys, given as words."""
    return dict.fromkeys(keys.split(), rule)
