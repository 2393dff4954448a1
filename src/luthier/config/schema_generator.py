"""How JSON Schemas are made from pydantic types: without the titles that only repeat the names."""

from typing import Any

from pydantic.json_schema import GenerateJsonSchema


class UntitledJsonSchema(GenerateJsonSchema):
    """Pydantic's generator for draft 2020-12, leaving out the title of every field."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        """Never: `Max Length` says nothing that `max_length` does not."""
        return False
