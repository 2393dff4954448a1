"""Writes a configuration as YAML that reads back to the same one, and tells two apart."""

from typing import Any

import yaml
from pydantic import BaseModel
from yaml.representer import BaseRepresenter

from luthier.config.places import dotted
from luthier.config.source import CoreLoader
from luthier.config.tree import Config

LINE = 88
"""A section that fits on a line of this many characters stands on one line."""


def _text(dumper: BaseRepresenter, data: str) -> yaml.ScalarNode:
    """Text, in double quotes where it has line breaks or signs that other styles would change."""
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


class _Dumper(yaml.SafeDumper):
    """Quotes every text that YAML 1.1 or 1.2 would read as something else, and writes no aliases."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - the name and kind of attribute that PyYAML looks for
        **yaml.SafeDumper.yaml_implicit_resolvers,
        None: CoreLoader.yaml_implicit_resolvers[None],
    }

    def ignore_aliases(self, data: Any) -> bool:
        """Always: a value that occurs twice is written twice."""
        return True

    yaml_representers = {**yaml.SafeDumper.yaml_representers, str: _text}  # noqa: RUF012 - as above


def config_values(config: Config) -> dict[str, Any]:
    """The configuration as plain values, defaults included; keys that are absent are left out."""
    return _values(config)


def dump_config(config: Config) -> str:
    """The resolved configuration as YAML. `load_config` reads it back to an equal one."""
    parts = []
    for key, value in config_values(config).items():
        line = f"{key}: {_inline(value)}\n"
        if len(line) > LINE and isinstance(value, dict) and value:
            line = yaml.dump(
                {key: value},
                Dumper=_Dumper,
                sort_keys=False,
                allow_unicode=True,
                default_flow_style=None,
                width=2**31,
            )
        parts.append(line)
    return "".join(parts)


def config_diff(old: Config, new: Config) -> list[str]:
    """What changed from one configuration to another, one line a key: `train.epochs: 2.0 -> 3.0`."""
    return _diff(config_values(old), config_values(new), ())


def _values(section: BaseModel) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if value is not None or field.default is not None:
            values[name] = _plain(value)
    return values | (section.model_extra or {})


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return _values(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def _inline(value: Any) -> str:
    text = yaml.dump(
        value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, default_flow_style=True, width=2**31
    )
    return text.removesuffix("\n").removesuffix("\n...")  # PyYAML ends a lone scalar with a document end


def _diff(old: dict[str, Any], new: dict[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = []
    for key in dict.fromkeys([*(old if path else Config.model_fields), *old, *new]):
        here = (*path, key)
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += _diff(before, after, here)
        elif (key in old) != (key in new) or before != after:
            shown = [_inline(side[key]) if key in side else "absent" for side in (old, new)]
            lines.append(f"{dotted(here)}: {shown[0]} -> {shown[1]}")
    return lines
