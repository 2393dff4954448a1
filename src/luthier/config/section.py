"""What all sections of the configuration are made of."""

from typing import Annotated, Any, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Text = Annotated[str, Field(min_length=1)]
Paths = Annotated[list[Text], Field(min_length=1)]


class Section(BaseModel):
    """A part of the tree: frozen, typed, without unknown keys, documented by its fields' docstrings."""

    model_config = ConfigDict(
        frozen=True,
        strict=True,
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )

    @model_validator(mode="before")
    @classmethod
    def _null_means_absent(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {key: value for key, value in values.items() if value is not None or cls._keeps_null(key)}

    @classmethod
    def _keeps_null(cls, key: str) -> bool:
        field = cls.model_fields.get(key)
        if field is None:
            return True  # unknown: it is refused later, or belongs to a method of the user's own
        return type(None) in get_args(field.annotation) and field.default is not None
