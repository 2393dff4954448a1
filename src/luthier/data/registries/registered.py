"""What a list of data sets of another tool comes to here."""

from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from luthier.config.data_section import SetSection
from luthier.errors import DataError


@dataclass
class Registered:
    """Data sets, and everything about them that is not the same here."""

    sets: list[SetSection] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What is read, but in another way."""
    missing: list[str] = field(default_factory=list)
    """What has no counterpart, each with the reason."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Keys of the section `data` that say the rest, such as `learn`."""

    def extend(self, other: "Registered") -> None:
        """Takes in what another data set comes to."""
        self.sets += other.sets
        self.notes += other.notes
        self.missing += other.missing
        self.settings.update(other.settings)


def make_set(where: str, options: dict[str, Any]) -> SetSection:
    """The data set with these options, those without a value left out. Raises DataError, naming the option."""
    try:
        return SetSection(**{name: value for name, value in options.items() if value not in (None, "", {})})
    except ValidationError as fault:
        first = fault.errors()[0]
        option = ".".join(map(str, first["loc"]))
        raise DataError(f"{where}: {option} is {first['input']!r}: {first['msg'].lower()}") from fault
