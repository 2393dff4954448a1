"""The share of predictions that are JSON of the wanted shape: valid against a JSON Schema.

`json_schema:ticket.json` reads the schema from a file. References do not matter. Strict reading, as `json_valid`; the
draft is the one that `$schema` names (2020-12 without it). A schema may refer to parts of itself, not to other files.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from luthier.errors import ConfigError
from luthier.evaluate.intervals import Sums, mean
from luthier.evaluate.metrics._json import read_json

USUAL = False
ARGUMENT = "the file with the schema"
NEEDS = ("jsonschema",)

Check = Callable[[Any], bool]


def settle(argument: str | None) -> Check:
    """Whether a value fits the schema in the file of this name."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing import Registry

    if not argument:
        raise ConfigError("json_schema needs the file with the schema, as in json_schema:ticket.schema.json")
    try:
        schema = json.loads(Path(argument).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"json_schema: {argument} cannot be read as JSON ({error}); give a schema"
        ) from error
    kind: Any = validator_for(schema)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise ConfigError(f"json_schema: {argument} is no JSON Schema: {error.message}") from error
    if elsewhere := [name for name in _references(schema) if not name.startswith("#")]:
        raise ConfigError(
            f"json_schema: {argument} refers to {elsewhere[0]}, but no other file is read; "
            "put that part into it, under $defs"
        )
    return kind(schema, registry=Registry()).is_valid


def _references(schema: Any) -> list[str]:
    """What a schema refers to."""
    if isinstance(schema, dict):
        own = [
            value
            for key, value in schema.items()
            if key in ("$ref", "$dynamicRef") and isinstance(value, str)
        ]
        return own + [name for value in schema.values() for name in _references(value)]
    return [name for value in schema for name in _references(value)] if isinstance(schema, list) else []


def tally(predictions: Sequence[str], references: Sequence[str], fits: Check) -> Sums:
    """`json_schema`: the share of predictions that fit."""
    return mean([_fits(text, fits) for text in predictions], binary=True)


def _fits(text: str, fits: Check) -> bool:
    document = read_json(text)
    if document is None:
        return False
    try:
        return fits(document.value)
    except RecursionError:  # nested deeper than it can be checked
        return False
