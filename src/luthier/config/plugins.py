"""The options of methods, optimizers, ways to store and to choose weights, known without importing them.

Each file in `methods/`, `optim/`, `kernels/quant/` and `models/tuning/` that holds one `@settings` class is a plugin;
its file name is its name. `plugins.json` describes them all, so that a config can be checked without torch;
`luthier schema --update-plugins` writes it anew, and a test holds it to the files.
"""

import importlib
import importlib.util
import json
import pkgutil
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, Union

from pydantic import Field, TypeAdapter, create_model
from pydantic.dataclasses import is_pydantic_dataclass

from luthier.config.schema_generator import UntitledJsonSchema
from luthier.config.section import Section
from luthier.config.words import Schema, did_you_mean
from luthier.errors import ConfigError

KINDS = {
    "method": "methods",
    "optim": "optim",
    "quant": "kernels.quant",
    "qat": "kernels.quant",
    "tune": "models.tuning",
}
"""The sections with plugins, and the package that holds the files of each."""

_BOUNDS = {
    "minimum": "ge",
    "exclusiveMinimum": "gt",
    "maximum": "le",
    "exclusiveMaximum": "lt",
    "minLength": "min_length",
    "maxLength": "max_length",
    "minItems": "min_length",
    "maxItems": "max_length",
    "pattern": "pattern",
}
_TYPES = {
    "integer": int,
    "number": float,
    "boolean": bool,
    "string": str,
    "null": None,
    "object": dict[str, Any],
}


@cache
def known_plugins() -> dict[str, dict[str, Schema]]:
    """For each section, the JSON Schema of the options of each plugin. Do not change it."""
    return json.loads(files("luthier.config").joinpath("plugins.json").read_text(encoding="utf-8"))


@cache
def known_options(section: str, name: str) -> type[Section]:
    """The section that accepts exactly the options of a known plugin."""
    return options_model(known_plugins()[section][name])


def is_own_file(name: Any) -> bool:
    """Whether a method or optimizer is the path of a user's Python file, whose options are checked on loading."""
    return isinstance(name, str) and name.endswith(".py")


def unknown_plugin(section: str, name: str) -> str:
    """What to say about a plugin that does not exist."""
    known = sorted(known_plugins()[section])
    own = ", or ./FILE.py for one of your own"
    return f'{section}.name is "{name}"; known: {", ".join(known)}{own}{did_you_mean(name, known)}'


def options_model(schema: Schema) -> type[Section]:
    """A section that accepts exactly the options that the schema describes.

    An option whose default is computed by the plugin, so that no schema knows it, is None unless it is given.
    """
    fields: dict[str, Any] = {}
    for name, field in schema.get("properties", {}).items():
        kind = annotation(field)
        if name in schema.get("required", ()):
            fields[name] = (kind, ...)
        elif "default" in field:
            fields[name] = (kind, field["default"])
        else:
            fields[name] = (kind | None, None)
    return create_model(schema.get("title", "Options"), __base__=Section, **fields)


def resolved_options(schema: Schema, options: Section) -> dict[str, Any]:
    """The options with their defaults, without those that are left to the plugin."""
    computed = {name for name, field in schema.get("properties", {}).items() if "default" not in field}
    return {k: v for k, v in options.model_dump().items() if not (k in computed and v is None)}


def annotation(schema: Schema) -> Any:
    """The Python type that a JSON Schema describes; what it does not know is left to the plugin to check."""
    if "anyOf" in schema:
        return Union[tuple(annotation(part) for part in schema["anyOf"])]  # noqa: UP007 - the parts are data
    if "const" in schema:
        return Literal[schema["const"]]
    if "enum" in schema:
        return Literal[tuple(schema["enum"])]
    bounds = {ours: schema[theirs] for theirs, ours in _BOUNDS.items() if theirs in schema}
    kind = schema.get("type")
    if kind == "array":
        plain: Any = list[annotation(schema.get("items", {}))]
    elif kind in _TYPES:
        plain = _TYPES[kind]
    else:
        return Any
    return Annotated[plain, Field(**bounds)] if bounds else plain


def plugin_class(module: ModuleType) -> type | None:
    """The one `@settings` class that is defined in a module; None where there is none."""
    classes = [
        value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and not name.startswith("_")
        and value.__module__ == module.__name__
        and "__pydantic_fields__" in vars(value)
    ]
    if len(classes) > 1:
        names = ", ".join(sorted(cls.__name__ for cls in classes))
        raise ConfigError(
            f"{module.__name__} defines several @settings classes ({names}); keep one in each file"
        )
    return classes[0] if classes else None


def load_plugin(package: ModuleType, name: str) -> type:
    """The class of a plugin by the name of its file in the package, or by the path of a user's own file."""
    if is_own_file(name):
        return _required(_load_file(Path(name)), name)
    if name not in _module_names(package.__path__):
        known = ", ".join(sorted(describe(package)))
        raise ConfigError(f'{package.__name__} has no "{name}"; known: {known}')
    return _required(importlib.import_module(f"{package.__name__}.{name}"), name)


def describe(package: ModuleType) -> dict[str, Schema]:
    """The JSON Schema of the options of every plugin in a package, by name. Imports all of its modules."""
    described = {}
    for name in _module_names(package.__path__):
        cls = plugin_class(importlib.import_module(f"{package.__name__}.{name}"))
        if cls is None:
            continue
        schema = TypeAdapter(cls).json_schema(schema_generator=UntitledJsonSchema)
        _inherit_help(schema, cls)
        if "$defs" in schema:
            nested = ", ".join(schema["$defs"])
            raise ConfigError(
                f"{cls.__name__} has options of the type {nested}; use numbers, text, booleans and lists"
            )
        described[name] = schema
    return described


def _inherit_help(schema: Schema, cls: type) -> None:
    """Options of a class that this one extends keep their help; pydantic reads only docstrings of the class itself."""
    for parent in cls.__mro__[1:]:
        if is_pydantic_dataclass(parent):
            told = TypeAdapter(parent).json_schema(schema_generator=UntitledJsonSchema)["properties"]
            for option, field in schema["properties"].items():
                if "description" not in field and "description" in told.get(option, {}):
                    field["description"] = told[option]["description"]


def _module_names(folders: Sequence[str]) -> list[str]:
    names = [module.name for module in pkgutil.iter_modules(folders)]
    return sorted(name for name in names if name != "base" and not name.startswith("_"))


def _load_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such Python file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None, "a .py file always has a loader"
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a user's own file raises
        raise ConfigError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _required(module: ModuleType, name: str) -> type:
    cls = plugin_class(module)
    if cls is None:
        raise ConfigError(f"{name} holds no class with @settings; see luthier/config/settings.py")
    return cls
