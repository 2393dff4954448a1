"""`@settings`: makes a method or an optimizer a frozen dataclass whose fields are its configuration.

The fields' docstrings are their help, their defaults and bounds the validation. There is no second class for
the configuration that would have to be kept in step.
"""

from typing import TypeVar, dataclass_transform

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

Plugin = TypeVar("Plugin")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def settings(cls: type[Plugin]) -> type[Plugin]:
    """The class as a frozen dataclass with keyword arguments that checks its values and refuses unknown ones.

    Raises pydantic's ValidationError for a wrong value. Values from a config file have been checked before,
    with errors in the words of the file (`plugins.py`).
    """
    config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
    return dataclass(frozen=True, kw_only=True, config=config)(cls)  # type: ignore[return-value]
