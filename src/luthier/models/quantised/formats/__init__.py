"""Formats in which others store models in few bits: one file a format, found by `quantization_config` in a model's
config.json.

Each file has `METHODS`, the values of `quant_method` that it answers for, and `read(config)`, which gives a `Format` or
raises ModelError if it is a variant that cannot be read.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.errors import ModelError
from luthier.models.quantised.formats.base import Format


def modules() -> dict[str, Any]:
    """The files of this folder that read a format, by name."""
    names = [found.name for found in pkgutil.iter_modules(__path__) if found.name != "base"]
    return {name: importlib.import_module(f"{__name__}.{name}") for name in names}


def find_format(config: Mapping[str, Any], folder: Path) -> Format:
    """What reads the weights that `quantization_config` describes.

    Raises:
        ModelError: no format here does; the message names it and says what works.
    """
    method = str(config.get("quant_method") or _unnamed(config))
    for module in modules().values():
        if method in module.METHODS:
            return module.read(config)
    known = ", ".join(sorted(name for module in modules().values() for name in module.METHODS))
    raise ModelError(
        f"the model in {folder} is stored as {method!r} (quant_method of quantization_config in its config.json), "
        f"which is not read here. These are: {known}. Name the model that it was made from, with `quant: nf4` if "
        "memory is short."
    )


def _unnamed(config: Mapping[str, Any]) -> str:
    """What older files of bitsandbytes mean, which do not name it."""
    return "bitsandbytes" if config.get("load_in_4bit") or config.get("load_in_8bit") else "unknown"
