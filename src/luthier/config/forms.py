"""Short ways to write a value, understood by the validators and shown in the JSON Schema alike."""

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True)
class Shorthand:
    """Lets `section: value` stand for `section: {key: value}`."""

    key: str

    def expand(self, value: Any) -> Any:
        """The section that the value stands for; a section, and null, stay what they are."""
        return value if value is None or isinstance(value, dict | BaseModel) else {self.key: value}

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.expand, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        made = handler(schema)
        sections = made.get("anyOf", [made])  # of a section that may be absent, null is another form
        section = next(form for form in sections if form.get("type") != "null")
        short = handler.resolve_ref_schema(section)["properties"][self.key]
        kinds = short.get("anyOf", [short])
        plain = [{k: v for k, v in kind.items() if k not in ("description", "default")} for kind in kinds]
        return {"anyOf": [*(kind for kind in plain if kind.get("type") != "null"), *sections]}


@dataclass(frozen=True)
class OneOrMany:
    """Lets one text stand for a list of one."""

    def expand(self, value: Any) -> Any:
        """A list around a text; everything else stays what it is."""
        return [value] if isinstance(value, str) else value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.expand, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        many = handler(schema)
        return {"anyOf": [{"type": "string", "minLength": 1}, *many.get("anyOf", [many])]}


@dataclass(frozen=True)
class KeysAlone:
    """Lets a list of texts stand for a mapping from these to empty texts."""

    def expand(self, value: Any) -> Any:
        """The mapping that a list of texts stands for; everything else stays what it is."""
        listed = isinstance(value, list) and all(isinstance(item, str) for item in value)
        return dict.fromkeys(value, "") if listed else value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.expand, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        keys = {"type": "array", "items": {"type": "string", "minLength": 1}}
        return {"anyOf": [keys, handler(schema)]}
