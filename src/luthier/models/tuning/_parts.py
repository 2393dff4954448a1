"""The weights of a model by name, by decoder layer and by kind."""

import re
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn
from transformers import PreTrainedModel

from luthier.errors import ConfigError
from luthier.models.lora_targets import input_embeddings, output_embeddings

Chosen = frozenset[int]
"""Weights, by `id`."""


class Weights:
    """The weights of a model, each once, under every name that it has.

    Args:
        model: unfused or fused; its weights keep their names.
    """

    def __init__(self, model: PreTrainedModel):
        self.model = model
        self.names: dict[str, int] = {
            name: id(parameter) for name, parameter in model.named_parameters(remove_duplicate=False)
        }
        self.embeddings = _ids(input_embeddings(model))
        self.head = _ids(output_embeddings(model))
        self.norms = frozenset(
            id(p)
            for module in model.modules()
            if re.search("norm", type(module).__name__, re.IGNORECASE)
            for p in module.parameters(recurse=False)
        )

    @property
    def everything(self) -> Chosen:
        """All weights."""
        return frozenset(self.names.values())

    @property
    def layers(self) -> list[Chosen]:
        """The weights of each decoder layer."""
        return [_ids(layer) for layer in decoder_layers(self.model)[1]]

    def named(self, pattern: str, key: str) -> Chosen:
        """The weights that a name or pattern means.

        Raises:
            ConfigError: there are none. `key` is where the pattern stands in the config.
        """
        means = _meaning(pattern, key)
        found = frozenset(i for name, i in self.names.items() if means(name))
        if found:
            return found
        near = _nearest(pattern, self.names)
        raise ConfigError(
            f"{key} has {pattern!r}, which is in the name of no weight of this model; the nearest: {', '.join(near)}. "
            "Give a part of a name between dots, a pattern with * for what differs, or a regular expression with ^"
        )

    def in_order(self, chosen: Chosen) -> Iterator[tuple[str, nn.Parameter]]:
        """These weights with their first names, in the model's order."""
        return ((name, p) for name, p in self.model.named_parameters() if id(p) in chosen)


def decoder_layers(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """The list of the model's decoder layers, and its name.

    Raises:
        ConfigError: the model has no such list.
    """
    number = getattr(model.config.get_text_config(), "num_hidden_layers", None)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return name, module
    raise ConfigError(
        f"{type(model).__name__} has no list of {number} decoder layers that could be told apart, so layers cannot be "
        "chosen in it. Name weights instead (tune.train)"
    )


def _meaning(pattern: str, key: str) -> Callable[[str], bool]:
    """Whether a name is meant: by a regular expression where that begins with ^, else by a pattern for part of it."""
    if pattern.startswith("^"):
        try:
            compiled = re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ConfigError(f'{key} has "{pattern}", which is no regular expression: {error}') from None
        return lambda name: compiled.match(name) is not None
    whole = (pattern, f"*.{pattern}", f"{pattern}.*", f"*.{pattern}.*")
    return lambda name: any(fnmatchcase(name, one) for one in whole)


def _ids(module: nn.Module | None) -> Chosen:
    return frozenset() if module is None else frozenset(map(id, module.parameters()))


def _nearest(pattern: str, names: Iterable[str]) -> list[str]:
    """Parts of names, and whole names, that look like the pattern; otherwise the last parts that there are."""
    plain = pattern.replace("*", "").strip(".")
    parts = list(dict.fromkeys(part for name in names for part in name.split(".") if not part.isdigit()))
    close = get_close_matches(plain, [*parts, *names], n=3, cutoff=0.5)
    close += get_close_matches(plain.rpartition(".")[2], parts, n=2, cutoff=0.5)
    return list(dict.fromkeys(close))[:4] or parts[:8]
