"""Which files of a folder or a hub set belong to a split, told by a card's list of them or by their names.

Names are read as the hub's own tools read them: `data/train-00000-of-00002.parquet`, `test.jsonl`,
`validation/a.jsonl`, `dev_questions.csv`.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from luthier.errors import DataError

_WORDS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
_SHARD = re.compile(r"(?:^|/)(\w+(?:\.\w+)*)-\d{5,}-of-(\d{5,})")
_SLICE = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<start>-?\d+%?)?:(?P<end>-?\d+%?)?\])?")


@dataclass(frozen=True)
class Slice:
    """The rows from `start` to `end` of a split. Negative ones count from the end; `percent` ones are shares."""

    start: int = 0
    end: int | None = None
    start_percent: bool = False
    end_percent: bool = False

    @property
    def needs_count(self) -> bool:
        """Whether the rows have to be counted to know which ones are meant."""
        negative = self.start < 0 or (self.end is not None and self.end < 0)
        return self.start_percent or self.end_percent or negative

    def window(self, num_rows: int) -> tuple[int, int]:
        """The first row and the end, of so many rows."""
        start = _absolute(self.start, self.start_percent, num_rows)
        end = num_rows if self.end is None else _absolute(self.end, self.end_percent, num_rows)
        return min(start, num_rows), min(end, num_rows)


def parse_split(text: str, where: str) -> tuple[str, Slice | None]:
    """The name of a split and the part of it that is meant: `train`, `train[:80%]`, `test[100:200]`.

    Raises:
        DataError: if it is written in another way.
    """
    found = _SLICE.fullmatch(text)
    if found is None:
        several = "; give each split as a set of its own in data.sets" if "+" in text else ""
        raise DataError(
            f"{where}: split `{text}` is not written like train, train[:80%] or train[100:200]{several}"
        )
    if "[" not in text:
        return text, None
    start, end = found["start"] or "0", found["end"]
    return found["name"], Slice(
        int(start.rstrip("%")),
        int(end.rstrip("%")) if end else None,
        start.endswith("%"),
        bool(end) and end.endswith("%"),
    )


def split_of(name: str) -> str | None:
    """The split that a file's path speaks of; None if it speaks of none."""
    shard = _SHARD.search(name)
    if shard is not None:
        return _WORDS.get(shard[1].lower(), shard[1])
    *folders, base = name.split("/")
    for part in (base, *reversed(folders)):
        for word in re.split(r"[-._ 0-9]+", part.lower()):
            if word in _WORDS:
                return _WORDS[word]
    return None


def files_of_split(names: Sequence[str], split: str, where: str) -> list[str]:
    """The files of a split by their names. Where no name speaks of any split, all files are the split `train`.

    Raises:
        DataError: if there is no such split, naming those there are.
    """
    splits = {name: split_of(name) for name in names}
    wanted = _WORDS.get(split.lower(), split)
    chosen = [name for name in names if splits[name] in (wanted, split) or _stem(name) == split]
    known = sorted({found for found in splits.values() if found})
    if not chosen and wanted == "train":
        chosen = [name for name in names if splits[name] is None]
    if not chosen:
        there = (
            f"there are {', '.join(known)}"
            if known
            else "no file's name speaks of a split, so all are `train`"
        )
        raise DataError(f"{where} has no split `{split}`; {there}")
    return chosen


def check_shards(names: Sequence[str], where: str, advice: str) -> None:
    """Refuses a set of which some numbered parts (`-00001-of-00004`) are missing.

    Raises:
        DataError: naming the first one.
    """
    series: dict[tuple[str, str, str], set[int]] = {}
    for name in names:
        if (found := re.fullmatch(r"(.*-)(\d{5,})-of-(\d{5,})(.*)", name)) is not None:
            series.setdefault((found[1], found[3], found[4]), set()).add(int(found[2]))
    for (before, count, after), numbers in series.items():
        missing = next((n for n in range(int(count)) if n not in numbers), None)
        if missing is not None:
            raise DataError(f"{where}: {before}{missing:05d}-of-{count}{after} is missing; {advice}")


def files_of_card(
    card: str, names: Sequence[str], subset: str | None, split: str, where: str
) -> list[str] | None:
    """The files that a data set's card (README.md) lists for a subset and split; None if it lists none.

    Raises:
        DataError: if the card lists subsets or splits, but not the wanted one.
    """
    configs = _configs(card)
    if not configs:
        return None
    by_name = {str(config.get("config_name", "default")): config for config in configs}
    if subset is None:
        marked = [name for name, config in by_name.items() if config.get("default") or name == "default"]
        if not marked and len(by_name) > 1:
            raise DataError(f"{where} has several subsets; choose one with `subset`: {', '.join(by_name)}")
        subset = (marked or list(by_name))[0]
    if subset not in by_name:
        raise DataError(f"{where} has no subset `{subset}`; it has {', '.join(by_name)}")
    config = by_name[subset]
    root = str(config.get("data_dir", "")).strip("/")
    inside = [name for name in names if not root or name.startswith(root + "/")]
    if "data_files" not in config:
        return files_of_split(inside, split, where)
    patterns = _patterns(config["data_files"])
    wanted = next((one for one in (split, _WORDS.get(split.lower(), split)) if one in patterns), None)
    if wanted is None:
        raise DataError(f"{where} has no split `{split}`; there are {', '.join(patterns)}")
    prefix = root + "/" if root else ""
    matchers = [re.compile(glob_pattern(prefix + pattern)) for pattern in patterns[wanted]]
    return [name for name in names if any(matcher.fullmatch(name) for matcher in matchers)]


def glob_pattern(pattern: str) -> str:
    """A file pattern (`*`, `**`, `?`, `[0-9]`, `{a,b}` is not known) as a regular expression for whole paths."""
    out = ""
    for part in re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", pattern):
        simple = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        out += simple.get(part) or (part.replace("[!", "[^") if part.startswith("[") else re.escape(part))
    return out


def _configs(card: str) -> list[dict[str, Any]]:
    found = re.match(r"---\r?\n(.*?)\r?\n---", card, re.DOTALL)
    try:
        header = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError:
        return []
    configs = header.get("configs") if isinstance(header, dict) else None
    return [config for config in configs if isinstance(config, dict)] if isinstance(configs, list) else []


def _patterns(given: Any) -> dict[str, list[str]]:
    """Patterns of files for each split, from any of the ways in which a card may write them."""
    if isinstance(given, dict):
        return {str(split): _texts(paths) for split, paths in given.items()}
    if isinstance(given, list) and given and all(isinstance(one, dict) for one in given):
        return {str(one.get("split", "train")): _texts(one.get("path", [])) for one in given}
    return {"train": _texts(given)}


def _texts(value: Any) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].split(".", 1)[0]


def _absolute(value: int, percent: bool, num_rows: int) -> int:
    if percent:
        value = round(value * num_rows / 100)
    return max(0, value + num_rows if value < 0 else value)
