"""How a model is stored, or rounded while it is trained, as a config says."""

from dataclasses import replace

from pydantic import ValidationError

import luthier.kernels.quant
from luthier.config.plugins import load_plugin
from luthier.config.qat_section import QatSection
from luthier.config.quant_section import QuantSection
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
    tables = section.embeddings
    how = replace(named(config, section), products=section.products, tables_name=tables or "")
    return how if tables is None else replace(how, tables=load_plugin(luthier.kernels.quant, tables)())


def named(config: Config, section: QuantSection | QatSection) -> Quantisation:
    """The scheme that a section names with its options, and the modules that it leaves alone.

    Raises:
        ConfigError: there is no such scheme, or options that do not go together.
    """
    try:
        scheme = load_plugin(luthier.kernels.quant, section.name)(**section.options)
    except ValidationError as error:
        raise ConfigError([fault["msg"].removeprefix("Value error, ") for fault in error.errors()]) from error
    whole = tuple(config.lora.modules_to_save) if config.lora is not None else ()
    return Quantisation(scheme, section.name, tuple(section.skip), whole)
