"""Reads a file of another tool: which tool it is, and what it comes to here."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from luthier.config.load import config_from_dict
from luthier.config.places import Source
from luthier.config.source import read_text
from luthier.config.tree import Config
from luthier.errors import ConfigError, LuthierError
from luthier.migrate.axolotl.convert import KEYS as AXOLOTL_KEYS
from luthier.migrate.axolotl.convert import convert as convert_axolotl
from luthier.migrate.axolotl.convert import is_cloud
from luthier.migrate.draft import Blocked, Draft
from luthier.migrate.findings import Imported, Kind
from luthier.migrate.llamafactory.convert import KEYS as LLAMAFACTORY_KEYS
from luthier.migrate.llamafactory.convert import convert as convert_llamafactory
from luthier.migrate.llamafactory.v1 import convert as convert_v1
from luthier.migrate.llamafactory.v1 import is_v1
from luthier.migrate.schedules import fit_warmup
from luthier.migrate.torchtune.convert import convert as convert_torchtune
from luthier.migrate.torchtune.convert import is_torchtune
from luthier.migrate.torchtune.references import resolved

_SURE = {  # keys that one tool alone has
    "Axolotl": ("base_model", "datasets", "sequence_len", "sample_packing"),
    "LLaMA-Factory": ("model_name_or_path", "finetuning_type", "cutoff_len", "stage"),
}
_TABLES = {"Axolotl": AXOLOTL_KEYS, "LLaMA-Factory": LLAMAFACTORY_KEYS}
_FEWEST = 3
"""Keys of a tool's table that a file must have, where none is there that one tool alone has."""


class Refused(LuthierError):
    """The file describes a run that Luthier cannot do, or none at all. Says why; ends with 1."""


def import_file(path: Path, *, processes: int = 1, rows: Sequence[str] = ()) -> Imported:
    """The configuration in a file of LLaMA-Factory, Axolotl or torchtune, in Luthier's keys.

    Args:
        path: the YAML or JSON file.
        processes: how many processes its run had; they multiply the tokens of a step.
        rows: what to train on instead of the file's own data sets.

    Raises:
        ConfigError: the file cannot be read, or is of none of these tools.
        Refused: it describes no run that Luthier can do; every reason is named.
    """
    text = _read(path)
    source = read_text(text, str(path))
    tool, convert = _tool(path, source.values, text)
    if tool == "torchtune":
        source = Source(resolved(source.values), source.places, source.faults)
    draft = Draft(tool, source, processes=processes, rows=rows)
    for fault in source.faults:
        draft.unreadable(fault)
    convert(draft)
    fit_warmup(draft)
    try:
        imported = draft.done(str(path))
    except Blocked as blocked:
        raise Refused(f"{path} ({tool}) cannot be imported: {blocked}") from None
    _check(imported, path)
    return imported


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: this is a folder; give the YAML file itself") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: this is no text in UTF-8, so no configuration") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None


def _tool(path: Path, values: dict[str, Any], text: str) -> tuple[str, Callable[[Draft], None]]:
    """The tool's name, and what turns its keys."""
    if values and set(values) <= set(Config.model_fields) and {"model", "data"} <= set(values):
        raise ConfigError(f"{path}: this is a configuration of Luthier already; see luthier check {path}")
    if is_torchtune(values):
        return "torchtune", lambda draft: convert_torchtune(draft, text)
    if is_cloud(values):
        raise Refused(
            f"{path} (Axolotl) cannot be imported: it describes a machine to rent, not a training run"
        )
    if is_v1(values):
        return "LLaMA-Factory", convert_v1
    counts = {
        tool: sum(10 * (key in _SURE[tool]) + (key in table) for key in values)
        for tool, table in _TABLES.items()
    }
    best = max(counts, key=lambda tool: counts[tool])
    if counts[best] < _FEWEST or len(set(counts.values())) == 1:
        raise ConfigError(
            f"{path}: this is no configuration of LLaMA-Factory (model_name_or_path, stage ...), Axolotl "
            "(base_model, datasets ...) or torchtune (sections with _component_)"
        )
    return best, convert_axolotl if best == "Axolotl" else convert_llamafactory


def _check(imported: Imported, path: Path) -> None:
    """Refuses what `luthier check` would, in the source's own keys."""
    try:
        config_from_dict(imported.values)
    except ConfigError as error:
        keys = {finding.target: finding for finding in imported.findings if finding.target}
        reasons = [_in_source_keys(fault, keys, path) for fault in error.faults]
        raise Refused(f"{path} ({imported.tool}) cannot be imported: " + "; ".join(reasons)) from None


def _in_source_keys(fault: str, keys: dict[str, Any], path: Path) -> str:
    text = fault.removeprefix("configuration: ")
    match = re.match(r"[\w.]+", text)
    finding = keys.get(match[0]) if match else None
    return f"line {finding.line}, {finding.key}: {text}" if finding else text


def lost(imported: Imported) -> list[str]:
    """What has no counterpart or was not understood, one line a key."""
    return [f"{finding.key}: {finding.text}" for finding in imported.of(Kind.NONE, Kind.UNKNOWN)]
