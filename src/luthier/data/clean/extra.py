"""The libraries that only cleaning needs; they come with the extra `clean`."""

import importlib
from types import ModuleType

from luthier.errors import ConfigError


def need(module: str, key: str) -> ModuleType:
    """A module of the extra `clean`.

    Raises:
        ConfigError: if it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as fault:
        package = module.partition(".")[0]
        raise ConfigError(
            f'{key} needs the package {package} ({fault}); install it with: pip install "luthier[clean]"'
        ) from fault
