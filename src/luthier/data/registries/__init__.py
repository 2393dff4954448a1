"""Lists of data sets as other tools keep them: LLaMA-Factory's `dataset_info.json`, Axolotl's `datasets:`.

`data: path/to/dataset_info.json#name,name` takes sets out of the first, `data: axolotl.yaml` takes those of the
second. Both become data sets of Luthier with the same rows, columns and names of roles.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.config.data_section import SetSection
from luthier.config.source import read_file
from luthier.data.registries.axolotl import axolotl_sets
from luthier.data.registries.llamafactory import llamafactory_sets
from luthier.data.registries.registered import Registered
from luthier.errors import DataError

__all__ = ["Registered", "axolotl_sets", "expand_registries", "is_registry", "llamafactory_sets"]

REGISTRY = "dataset_info.json"
_YAML = (".yaml", ".yml")
_LISTS = ("datasets", "test_datasets", "pretraining_dataset")


def is_registry(path: str) -> bool:
    """Whether a path of `data` names a list of data sets rather than rows."""
    file, mark, _ = path.rpartition("#")
    if mark and not Path(path).exists():
        return file.lower().endswith((".json", *_YAML))
    return path.lower().endswith(_YAML) or Path(path).name == REGISTRY


def expand_registries(sets: Sequence[SetSection]) -> tuple[list[SetSection], list[str]]:
    """The data sets, with those that are named in lists of other tools in their places; and what to tell.

    Options that a data set gives besides its path hold for all that its path stands for.

    Raises:
        DataError: if a list cannot be read, lacks a name, or names what cannot be read here.
    """
    result: list[SetSection] = []
    notes: list[str] = []
    for section in sets:
        if not is_registry(section.path):
            result.append(section)
            continue
        found = _registered(section.path)
        own = {name: getattr(section, name) for name in section.model_fields_set - {"path"}}
        result += [one.model_copy(update=own) for one in found.sets]
        notes += found.notes + found.missing
        notes += [f"{section.path}: set data.{key}: {json.dumps(v)}" for key, v in found.settings.items()]
    return result, notes


def _registered(path: str) -> Registered:
    file, mark, names = path.rpartition("#")
    if not mark or Path(path).exists():
        file, names = path, ""
    if file.lower().endswith(_YAML):
        return _from_yaml(Path(file), names or "datasets")
    info = _read_json(Path(file))
    if not names.strip():
        raise DataError(
            f"{file} lists {len(info)} data sets; say which ones, such as {file}#{next(iter(info), 'NAME')}. "
            f"There are {', '.join(list(info)[:40])}{', …' if len(info) > 40 else ''}"
        )
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    return llamafactory_sets(info, chosen, Path(file).parent)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        info = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as fault:
        raise DataError(f"{file} cannot be read: {fault.strerror or fault}") from fault
    except (ValueError, RecursionError) as fault:
        raise DataError(f"{file} is not JSON: {fault}") from fault
    if not isinstance(info, dict) or not all(isinstance(entry, dict) for entry in info.values()):
        raise DataError(
            f"{file} is no list of data sets: it must hold an object with an object for each name"
        )
    return info


def _from_yaml(file: Path, key: str) -> Registered:
    values = read_file(file).values
    if key not in _LISTS or key not in values:
        there = ", ".join(name for name in _LISTS if name in values)
        raise DataError(
            f"{file} has no list `{key}` of data sets"
            + (f"; it has {there}" if there else "; give a data file, or a YAML file of Axolotl")
        )
    rl = values.get("rl")
    return axolotl_sets(values[key], rl if isinstance(rl, str) else None)
