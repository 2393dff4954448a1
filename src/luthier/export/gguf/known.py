"""The architectures that can be written, found by their files."""

import importlib
import pkgutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import gguf
from torch import Tensor

from luthier.errors import ModelError
from luthier.export.gguf import architectures


def known_types() -> list[str]:
    """transformers' names (`model_type`) of the models that can be written."""
    return sorted(
        one.name for one in pkgutil.iter_modules(architectures.__path__) if not one.name.startswith("_")
    )


@dataclass(frozen=True)
class Architecture:
    """One file of `architectures`, and a model's configuration."""

    module: ModuleType
    config: Any
    names: gguf.TensorNameMap

    @property
    def name(self) -> str:
        """What llama.cpp calls it."""
        return self.module.NAME

    def facts(self, config: Any) -> dict[str, Any]:
        """Numbers of the model by key."""
        return self.module.facts(config)

    def changed(self, name: str, tensor: Tensor) -> Iterable[tuple[str, Tensor]]:
        """What becomes of a tensor of transformers, under transformers' names; meta tensors stay such."""
        if not hasattr(self.module, "tensors"):
            return [(name, tensor)]
        return self.module.tensors(self.config, name, tensor)

    def more(self, config: Any) -> Iterator[tuple[str, Tensor]]:
        """Tensors that transformers computes instead of storing, under the file's names."""
        yield from self.module.more(config) if hasattr(self.module, "more") else ()

    def name_of(self, name: str) -> str:
        """The file's name for a tensor with transformers' name. Raises ModelError if it has none."""
        found = self.names.get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ModelError(
                f"llama.cpp's {self.name} has no tensor for {name}, so this model cannot become a GGUF."
            )
        return found


def architecture(config: Any) -> Architecture:
    """The one of a model. Raises ModelError if it cannot be written."""
    kind = config.model_type
    if kind not in known_types():
        raise ModelError(
            f"a model of the type {kind} cannot be written as a GGUF yet; those that can: {', '.join(known_types())}. "
            "Export it as merged instead, and convert the folder with llama.cpp's own script."
        )
    module = importlib.import_module(f"{architectures.__name__}.{kind}")
    number = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[module.NAME]
    return Architecture(module, config, gguf.get_tensor_name_map(number, config.num_hidden_layers))
