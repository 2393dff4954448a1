"""How a model is stored, as a config says."""

from pydantic import ValidationError

import luthier.kernels.quant
from luthier.config.plugins import load_plugin
from luthier.config.tree import Config
from luthier.errors import ConfigError
from luthier.models.quantised.load import Quantisation


def chosen(config: Config) -> Quantisation | None:
    """What the section `quant` asks for; None if it is absent. Modules that are trained whole stay as they are.

    Raises:
        ConfigError: there is no such scheme, or options that do not go together.
    """
    section = config.quant
    if section is None:
        return None
    try:
        scheme = load_plugin(luthier.kernels.quant, section.name)(**section.options)
    except ValidationError as error:
        raise ConfigError([fault["msg"].removeprefix("Value error, ") for fault in error.errors()]) from error
    whole = tuple(config.lora.modules_to_save) if config.lora is not None else ()
    return Quantisation(scheme, section.name, tuple(section.skip), whole, section.products)
