"""From a YAML file, overrides or plain values to a checked `Config`, or to all of their faults at once."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.config.data_section import DataSection
from luthier.config.faults import option_faults, section_class, tree_faults
from luthier.config.overrides import apply_overrides, expand_shorthands
from luthier.config.places import Fault, KeyPath, Place, Places, Source, in_order
from luthier.config.plain import plain
from luthier.config.plugins import (
    KINDS,
    is_own_file,
    known_options,
    known_plugins,
    resolved_options,
    unknown_plugin,
)
from luthier.config.source import read_file
from luthier.config.tree import Config, EvalSection, ScheduleSection, TrainSection, disagreements
from luthier.errors import ConfigError


def load_config(path: Path | str | None, overrides: Sequence[str] = ()) -> Config:
    """The configuration in a YAML file with the overrides laid over it; without a file, the overrides alone.

    Raises ConfigError with every fault, each with its line or override and its dotted key.
    """
    return load_with_places(path, overrides)[0]


def config_from_dict(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> Config:
    """The configuration in plain values, as a YAML file would hold them. Raises what `load_config` does."""
    if not isinstance(values, Mapping):
        raise ConfigError(
            f"the configuration is a {type(values).__name__}, but it must be a dict such as {{'model': NAME}}"
        )
    try:
        source = Source(plain(values), Places(Place("configuration")))
        return _resolve(source, overrides)[0]
    except RecursionError:
        raise ConfigError("the configuration is nested too deeply, or contains itself") from None


def load_with_places(path: Path | str | None, overrides: Sequence[str] = ()) -> tuple[Config, Places]:
    """Like `load_config`, and where each key was written, for faults that are found later."""
    source = Source({}, Places(Place("configuration"))) if path is None else read_file(Path(path))
    return _resolve(source, overrides)


def _resolve(source: Source, overrides: Sequence[str]) -> tuple[Config, Places]:
    source = replace(source, values=expand_shorthands(source.values))
    faults = source.faults + apply_overrides(source, overrides)
    values = dict(source.values)
    for section in KINDS:
        values[section], wrong_options = _check_options(section, values.get(section), source)
        faults += wrong_options
    config = None
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        unreadable = {fault.place for fault in source.faults}
        faults += tree_faults(error, values, source.places, unreadable)
        faults += _disagreements(error, values, source.places)
    if faults or config is None:
        raise ConfigError(in_order(faults))
    return config, source.places


def _check_options(section: str, written: Any, source: Source) -> tuple[Any, list[Fault]]:
    """The section with the options of its method or optimizer resolved; after a fault, without them."""
    if written is None:
        if Config.model_fields[section].default is None:
            return None, []  # a section that may be absent
        written = {}
    if not isinstance(written, dict):
        return written, []
    own = section_class(Config.model_fields[section].annotation)
    assert own is not None, "methods and optimizers are sections"
    name = written.get("name")
    name = own.model_fields["name"].default if name is None else name
    kept = {key: value for key, value in written.items() if key in own.model_fields}
    if is_own_file(name):
        return written, []
    schema = known_plugins()[section].get(name) if isinstance(name, str) else None
    if schema is None:
        faults = (
            [Fault(source.places.find((section, "name")), unknown_plugin(section, name))]
            if _names(name)
            else []
        )
        return kept, faults
    options = {key: value for key, value in written.items() if key not in kept}
    try:
        checked = known_options(section, name).model_validate(options)
    except ValidationError as error:
        return kept, option_faults(
            error, section, source.values, source.places, schema, list(own.model_fields)
        )
    return kept | resolved_options(schema, checked), []


def _names(name: Any) -> bool:
    """Whether a plugin was named at all; text that is empty, and other kinds, are the tree's to refuse."""
    return isinstance(name, str) and name != ""


def _disagreements(error: ValidationError, values: dict[str, Any], places: Places) -> list[Fault]:
    """Clashes between sections without own faults, where others kept the whole from being checked."""
    broken = {detail["loc"][0] for detail in error.errors(include_url=False) if detail["loc"]}
    if not broken:
        return []  # the whole was checked

    problems = disagreements(
        None if "data" in broken else DataSection.model_validate(values.get("data") or {}),
        None if "eval" in broken else EvalSection.model_validate(values.get("eval") or {}),
        None if "schedule" in broken else ScheduleSection.model_validate(values.get("schedule") or {}),
        None if "train" in broken else TrainSection.model_validate(values.get("train") or {}),
    )
    return [Fault(places.find(_path(problem.key)), problem.text) for problem in problems]


def _path(key: str) -> KeyPath:
    return tuple(key.split("."))
