"""`key=value` settings from the command line, laid over the values of a file.

A value is read as YAML: `data=[a.jsonl,b.jsonl]`, `lora=null`. A mapping replaces a section, a key inside a
section is set beside the others, and `model=NAME` sets the name and keeps the rest of the section.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.config.forms import Shorthand
from luthier.config.places import Fault, KeyPath, Place, Source, dotted
from luthier.config.source import read_value
from luthier.config.tree import Config
from luthier.config.words import shown
from luthier.errors import ConfigError

_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[A-Za-z_][\w-]*)*")
_ASSIGNMENT = re.compile(r"[-+]*[A-Za-z_][\w.-]*\s*=")


def split_arguments(arguments: Sequence[str]) -> tuple[Path | None, list[str]]:
    """The config file, if one is named, and the overrides, from the arguments of a command.

    Whatever reads `key=` is an override; a file with such a name is given as `./a=b.yaml`.
    """
    overrides = [argument for argument in arguments if _ASSIGNMENT.match(argument)]
    files = [argument for argument in arguments if not _ASSIGNMENT.match(argument)]
    if len(files) > 1:
        named = ", ".join(files)
        raise ConfigError(
            f"one config file is expected, but there are {len(files)}: {named}; write settings as key=value"
        )
    return (Path(files[0]) if files else None), overrides


def shorthands() -> dict[str, Shorthand]:
    """The sections with a short form, `model: NAME` for `model: {name: NAME}`."""
    fields = Config.model_fields.items()
    forms = [(name, form) for name, field in fields for form in field.metadata]
    return {name: form for name, form in forms if isinstance(form, Shorthand)}


def expand_shorthands(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same values with every section in its long form."""
    forms = shorthands()
    return {key: forms[key].expand(value) if key in forms else value for key, value in values.items()}


def apply_overrides(source: Source, overrides: Sequence[str]) -> list[Fault]:
    """Sets each override in the source's values, later ones last; returns what is wrong with them."""
    faults = []
    for rank, text in enumerate(overrides, start=1):
        place = Place(f'override "{text}"', rank=rank)
        try:
            path, value = parse_override(text)
            _set(source, path, value, place)
        except ConfigError as error:
            faults += [Fault(place, fault) for fault in error.faults]
    return faults


def parse_override(text: str) -> tuple[tuple[str, ...], Any]:
    """The path and the value of `a.b=value`."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals:
        raise ConfigError("a setting is written key=value, such as train.epochs=3")
    if not _KEY.fullmatch(key):
        bare = key.lstrip("-+")
        meant = f"; write {bare}={value}" if _KEY.fullmatch(bare) else ""
        raise ConfigError(f'"{key}" is not a key such as train.epochs{meant}')
    return tuple(key.split(".")), read_value(value)


def _set(source: Source, path: tuple[str, ...], value: Any, place: Place) -> None:
    section = source.values
    for length in range(1, len(path)):
        inner = section.get(path[length - 1])
        if inner is None:
            inner = section[path[length - 1]] = {}
        if not isinstance(inner, dict):
            outer: KeyPath = path[:length]
            where = source.places.find(outer)
            raise ConfigError(f"{dotted(outer)} is {shown(inner)} ({where}), not a section with keys")
        section = inner
    form = shorthands().get(path[0]) if len(path) == 1 else None
    before = section.get(path[-1])
    if form is not None and value is not None and not isinstance(value, dict) and isinstance(before, dict):
        section[path[-1]] = {**before, form.key: value}
        source.places.replace((*path, form.key), place)
        return
    section[path[-1]] = form.expand(value) if form is not None else value
    source.places.replace(path, place)
