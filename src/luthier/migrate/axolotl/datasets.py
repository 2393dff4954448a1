"""Axolotl's entries of `datasets:`, each as one of Luthier's sets."""

import re
from typing import Any

from luthier.errors import DataError
from luthier.migrate.draft import Draft
from luthier.migrate.findings import Kind
from luthier.migrate.readers import Misread, section

_KEY = re.compile(r"`?(?P<key>[a-z]\w*(\.\w+)?)`?(?= (?:is|has|has no)\b|:)")


def read_sets(draft: Draft, key: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The sets that the entries of a key stand for, and what they say about all data (`learn` and the like).

    What becomes of the entries' own keys goes to the findings; an entry whose rows cannot be read blocks.
    """
    from luthier.data.registries import axolotl_sets
    from luthier.data.registries.axolotl import settle
    from luthier.data.registries.registered import Registered

    entries = draft.given.get(key)
    if isinstance(entries, str):
        entries = [{"path": entries, "type": "pretrain"}]
    if isinstance(entries, dict):
        entries = [entries]
    if not isinstance(entries, list):
        raise Misread("must be a list of data sets, such as `- {path: …, type: …}`")
    method = draft.given.get("rl")
    everything = Registered()
    settings: list[dict[str, Any]] = []
    used: list[dict[str, Any]] = []
    for number, entry in enumerate(entries):
        given: dict[str, Any] = {"path": entry} if isinstance(entry, str) else section(entry)
        place = f"{key}.{number}"
        if key == "pretraining_dataset":
            given.setdefault("type", "pretrain")
        try:
            found = axolotl_sets([given], method if isinstance(method, str) else None)
        except DataError as error:
            draft.block(place, _plain(str(error)))
            continue
        everything.extend(found)
        settings.append(found.settings)
        used.append(given)
        draft.find(place, Kind.MAPPED, "", "data.sets")
        _tell(draft, place, given, found.notes, Kind.NOTED)
        _tell(draft, place, given, found.missing, Kind.NONE)
    everything.missing = []
    settle(everything, settings, used)  # what holds for all data, and differs from set to set
    for text in everything.missing:
        draft.none(key, text)
    return [one.model_dump(exclude_unset=True) for one in everything.sets], everything.settings


def _tell(draft: Draft, place: str, entry: dict[str, Any], texts: list[str], kind: Kind) -> None:
    """Findings from what was said about an entry, each at the key that it begins with."""
    for text in map(_plain, texts):
        match = _KEY.match(text)
        key = match["key"] if match and match["key"].partition(".")[0] in entry else ""
        found = kind
        if " is not known" in text:
            found = Kind.UNKNOWN
        elif "is not needed" in text:
            found = Kind.NEEDLESS
        if key:
            text = re.sub(r"^.*?(is not needed: |has no counterpart: |: )", "", text, count=1)
        place_ = f"{place}.{key}" if key else f"{place}.type" if "type" in entry else place
        draft.find(place_, found, text, "data.sets" if found is Kind.NOTED else None)


def _plain(text: str) -> str:
    """The text without the number and path of the entry, which the finding has itself."""
    return re.sub(r"^datasets\[\d+\] (\([^)]*\))?:? ?", "", text)
