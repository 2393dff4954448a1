"""The configuration of a run: the typed tree, YAML with line numbers, overrides, JSON Schema."""

from luthier.config.dump import config_diff, config_values, dump_config
from luthier.config.load import config_from_dict, load_config
from luthier.config.tree import Config

__all__ = ["Config", "config_diff", "config_from_dict", "config_values", "dump_config", "load_config"]
