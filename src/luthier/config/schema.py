"""The whole configuration as one JSON Schema (draft 2020-12), for editors, the docs and the web form.

It shows what people write: short forms, and the options of every method and optimizer beside the section's
own keys. That null means absent is not repeated at every key.
"""

from typing import Any

from luthier.config.faults import section_class
from luthier.config.plugins import KINDS, known_plugins
from luthier.config.schema_generator import UntitledJsonSchema
from luthier.config.tree import Config
from luthier.config.words import Schema


def config_schema() -> Schema:
    """JSON Schema of a run's YAML file, with the fields' docstrings as descriptions."""
    schema = Config.model_json_schema(schema_generator=UntitledJsonSchema)
    for section in KINDS:
        _add_plugins(schema, section)
    for name, field in schema["properties"].items():
        if _is_section(name):
            field.pop("default", None)  # the defaults stand at the section's keys
            field.setdefault("description", schema["$defs"][_class_name(name)]["description"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _add_plugins(schema: Schema, section: str) -> None:
    """Replaces an open section by one closed variant for each plugin, and one for files of the user's own."""
    plugins = known_plugins()[section]
    base = schema["$defs"][_class_name(section)]
    default = base["properties"]["name"]["default"]
    own: Schema = {"type": "string", "pattern": r"\.py$"}
    if (second := base["properties"].get("embeddings")) is not None:  # one more scheme, by its name alone
        anyone: Schema = {"anyOf": [{"enum": list(plugins)}, own], "description": second["description"]}
        base["properties"]["embeddings"] = anyone
    variants = [_variant(base, name, described, default) for name, described in plugins.items()]
    path = own | {"description": base["properties"]["name"]["description"]}
    variants.append({**_closed(base, {"name": path}), "required": ["name"], "additionalProperties": True})
    if section == "method":  # which may be given by its name alone
        names: list[Schema] = [{"enum": list(plugins)}, own]
        schema["properties"][section]["anyOf"] = [*names, {"$ref": f"#/$defs/{_class_name(section)}"}]
    elif "anyOf" in schema["properties"][section]:  # a short form names a plugin
        forms = schema["properties"][section]["anyOf"]
        short: Schema = {"enum": list(plugins)}
        schema["properties"][section]["anyOf"] = [short if f.get("type") == "string" else f for f in forms]
    schema["$defs"][_class_name(section)] = {"description": base["description"], "anyOf": variants}


def _variant(base: Schema, name: str, described: Schema, default: str) -> Schema:
    named = {"const": name, "description": base["properties"]["name"]["description"]}
    properties = {"name": named, **described.get("properties", {})}
    required = [*([] if name == default else ["name"]), *described.get("required", ())]
    variant = _closed(base, properties) | {"title": name, "required": required}
    if "description" in described:
        variant["description"] = described["description"]
    return variant


def _closed(base: Schema, properties: Schema) -> Schema:
    return {
        "type": "object",
        "description": base["description"],
        "properties": {**base["properties"], **properties},
        "additionalProperties": False,
    }


def _is_section(name: str) -> bool:
    return section_class(Config.model_fields[name].annotation) is not None


def _class_name(section: str) -> str:
    cls: Any = section_class(Config.model_fields[section].annotation)
    return cls.__name__
