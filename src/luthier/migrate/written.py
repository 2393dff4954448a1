"""Writes an imported configuration as YAML, with a comment wherever something means something else."""

import json
import re
import textwrap
from typing import Any

from luthier.config.faults import section_class
from luthier.config.source import read_value
from luthier.config.tree import Config
from luthier.errors import ConfigError
from luthier.migrate.findings import Imported, Kind

_WIDTH = 100
_PLAIN = re.compile(r"[A-Za-z./_][\w./+@=%#\[\]-]*(:[\w./+@=%#\[\]-]+)*")


def written(imported: Imported) -> str:
    """YAML that `load_config` reads back to the same configuration."""
    lines = [*_comment(f"Imported from {imported.tool}. `luthier check` says what the run would do.", ""), ""]
    for name in Config.model_fields:
        if name in imported.values:
            lines += _entry(name, _in_order(name, imported.values[name]), name, imported.notes, "")
    lost = imported.of(Kind.NONE, Kind.UNKNOWN)
    if lost:
        lines += ["", "# Without a counterpart here:"]
        for finding in lost:
            lines += _comment(f"- {finding.key}: {finding.text}", "", hanging="  ")
    return "\n".join(lines) + "\n"


def _in_order(name: str, value: Any) -> Any:
    """A section's keys in the order that the docs have them."""
    section = section_class(Config.model_fields[name].annotation)
    if section is None or not isinstance(value, dict):
        return value
    ranks = {key: rank for rank, key in enumerate(section.model_fields)}
    return dict(sorted(value.items(), key=lambda item: ranks.get(item[0], len(ranks))))


def _entry(name: str, value: Any, path: str, notes: dict[str, list[str]], indent: str) -> list[str]:
    lines = [line for note in notes.get(path, []) for line in _comment(note, indent)]
    if isinstance(value, dict) and value:
        lines.append(f"{indent}{name}:")
        for key, item in value.items():
            lines += _entry(key, item, f"{path}.{key}", notes, indent + "  ")
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        lines.append(f"{indent}{name}:")
        lines += [f"{indent}  - {_flow(item)}" for item in value]
    else:
        lines.append(f"{indent}{name}: {_flow(value)}")
    return lines


def _comment(text: str, indent: str, hanging: str = "") -> list[str]:
    start = f"{indent}# "
    plain = "".join(sign if sign.isprintable() else f"\\u{ord(sign):04x}" for sign in " ".join(text.split()))
    return textwrap.wrap(
        plain, _WIDTH, initial_indent=start, subsequent_indent=start + hanging, break_on_hyphens=False
    )


def _flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_scalar(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    return _scalar(value)


def _scalar(value: Any) -> str:
    """A plain value; text in quotes wherever YAML could read it as something else."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, int | float):
        return repr(value)
    if _PLAIN.fullmatch(value) and not re.search(r" #|[\[\]]", value) and _reads_as_text(value):
        return value
    return json.dumps(value, ensure_ascii=not value.isprintable())


def _reads_as_text(value: str) -> bool:
    try:
        return read_value(value) == value and value.lower() not in ("yes", "no", "on", "off", "y", "n")
    except ConfigError:
        return False
