"""Values from Python as plain data that YAML can hold: dicts, lists, text, numbers, booleans and None."""

import os
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

from pydantic import BaseModel

from luthier.config.places import KeyPath, dotted
from luthier.config.words import shown
from luthier.errors import ConfigError


def plain(value: Any, path: KeyPath = ()) -> Any:
    """A copy of the value in plain data. Paths become text, tuples lists, sections dicts.

    Raises ConfigError for anything that could not be written to the run's `config.yaml`.
    """
    if value is None or isinstance(value, bool | str):
        return value if not isinstance(value, str) else str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, BaseModel):
        return plain(value.model_dump(), path)
    if isinstance(value, Mapping):
        return {_name(key, path): plain(item, (*path, key)) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, (*path, index)) for index, item in enumerate(value)]
    where = dotted(path) or "the configuration"
    raise ConfigError(
        f"{where} is a {type(value).__name__}, which a config file cannot hold; give plain values"
    )


def _name(key: Any, path: KeyPath) -> str:
    if isinstance(key, str):
        return str(key)
    where = dotted(path) or "the configuration"
    raise ConfigError(f"{where} has the key {shown(key)}, which is not text; keys are names")
