"""How a model is rounded while it is trained, as a config says."""

from dataclasses import dataclass

from torch import nn

from luthier.config.tree import Config
from luthier.errors import ModelError
from luthier.kernels.rounding import Rounding
from luthier.models.quantised.chosen import named
from luthier.models.quantised.load import Quantisation, names_to_store
from luthier.models.rounded.linear import RoundedLinear
from luthier.models.swap import put


@dataclass(frozen=True)
class Rounded:
    """Which layers are rounded how."""

    rounding: Rounding
    which: Quantisation

    def note(self, names: list[str]) -> str:
        """What a person should be told of it."""
        inputs = {None: "", "int8": ", their inputs to 8 bits a token", "q8_0": ", their inputs to Q8_0"}
        return f"trained for {self.which.name}: {len(names)} linear layers rounded to it{inputs[self.rounding.inputs]}"


def chosen_rounding(config: Config) -> Rounded | None:
    """What the section `qat` asks for; None if it is absent. Modules that are trained whole stay as they are.

    Raises:
        ConfigError: there is no such scheme, or options that do not go together.
    """
    section = config.qat
    if section is None:
        return None
    which = named(config, section)
    return Rounded(Rounding(which.scheme, section.inputs), which)


def round_linears(model: nn.Module, rounded: Rounded | None) -> list[str]:
    """Rounds linear layers from now on, in place; their full names. None: nothing is done.

    To be called before adapters are put on. The layer that makes logits, embeddings and what `qat.skip` names stay as
    they are, as in files for llama.cpp.

    Raises:
        ModelError: there is none that can be rounded so, or `qat.skip` names none.
    """
    if rounded is None:
        return []
    names = sorted(names_to_store(model, rounded.which, "qat"))
    if not names:
        raise ModelError(
            f"qat: {rounded.which.name} rounds no layer of this model: it has no plain linear layer besides the one "
            "that makes logits and those of qat.skip, or their shapes do not fit. Leave out the section qat."
        )
    for name in names:
        plain = model.get_submodule(name)
        assert isinstance(plain, nn.Linear)
        put(model, name, RoundedLinear.around(plain, rounded.rounding))
    return names
