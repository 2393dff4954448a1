"""What a format of others must say, and how the tensors of one weight are found among those of a model.

Shape suffixes: M outputs, K inputs.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.kernels.quant.base import Scheme, Stored


@dataclass(frozen=True)
class Weight:
    """A weight as it is decoded here."""

    scheme: Scheme
    parts: Mapping[str, Tensor]
    shape: tuple[int, int]

    def stored(self, dtype: torch.dtype) -> Stored:
        """For products in `dtype`."""
        return Stored(self.scheme, self.parts, self.shape, dtype)


class Format:
    """How one model's weights lie in its files."""

    about: str
    """The format in a few words, such as `gptq, 4 bits, groups of 128`."""
    marks: tuple[str, ...]
    """What the name of one tensor ends in, for each stored weight: MODULE.MARK."""
    parts: tuple[str, ...]
    """Names of further tensors of the weight after MODULE and a dot, or how these begin."""
    unused: tuple[str, ...] = ()
    """Names of tensors that say something else, such as how activations would be rounded."""

    def weight(self, name: str, found: Mapping[str, Tensor]) -> Weight:
        """The weight of the module `name` from its tensors, by their names after MODULE and a dot.

        Raises:
            ModelError: tensors are missing, or their shapes do not fit each other.
        """
        raise NotImplementedError

    def groups(self, names: Iterable[str]) -> tuple[dict[str, dict[str, str]], set[str]]:
        """The tensors of each stored weight: full names by short ones, by module; and names of those to leave out."""
        names = set(names)
        modules = {
            name.removesuffix(f".{mark}")
            for mark in self.marks
            for name in names
            if name.endswith(f".{mark}")
        }
        found: dict[str, dict[str, str]] = {module: {} for module in modules}
        left_out = set()
        for name in names:
            for cut in (at for at, letter in enumerate(name) if letter == "."):
                module, short = name[:cut], name[cut + 1 :]
                if module in modules and short.startswith((*self.marks, *self.parts)):
                    found[module][short] = name
                elif short in self.unused:
                    left_out.add(name)
        return found, left_out


def need(name: str, found: Mapping[str, Tensor], *wanted: str) -> list[Tensor]:
    """The tensors of these names. Raises ModelError if one is missing."""
    missing = [part for part in wanted if part not in found]
    if missing:
        raise ModelError(
            f"{name} lacks the tensor {name}.{missing[0]}, without which its weight cannot be decoded. "
            "Download or save the model again."
        )
    return [found[part] for part in wanted]


def unfit(name: str, why: str) -> ModelError:
    """The error for tensors that do not fit each other."""
    return ModelError(
        f"the tensors of {name} do not fit each other: {why}. Download or save the model again."
    )
