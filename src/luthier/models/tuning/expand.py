"""Block expansion: new decoder layers between the old ones, which alone are tuned (LLaMA Pro, arXiv:2401.02415).

A new layer is a copy of the one before it whose last matrices, of attention and of the feed-forward part, are zero.
It adds nothing to the residual stream, so the deeper model is the same function, bit for bit, until it is trained.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.config.section import Positive
from luthier.config.settings import settings
from luthier.errors import ConfigError
from luthier.models.families._common import describers
from luthier.models.fused.parts import Mlp
from luthier.models.tuning._parts import Chosen, Weights, decoder_layers
from luthier.models.tuning.base import Say, Way

_LAST = ("o_proj", "out_proj", "dense", "c_proj", "down_proj", "w2", "fc2", "dense_4h_to_h", "wo")
"""What the last matrices of a branch are called in layers that no family describes."""


@settings
class Expand(Way):
    """Copies of layers, spread evenly, that begin as no change."""

    blocks: Positive = 4
    """How many new layers. The old ones are cut into as many groups, and one is put behind each."""

    def reshape(self, model: PreTrainedModel) -> str:
        """Puts the new layers in. Raises ConfigError where the model would not compute or load as before."""
        name, layers = decoder_layers(model)
        sources = places(len(layers), self.blocks)
        before = _sketch(model)
        grown = [copy.deepcopy(layers[source]) if fresh else layers[source] for source, fresh in sources]
        for layer, (_, fresh) in zip(grown, sources, strict=True):
            if fresh:
                _silence(layer)
        for number, layer in enumerate(grown):
            for module in layer.modules():
                if isinstance(getattr(module, "layer_idx", None), int):
                    module.layer_idx = number  # pyright: ignore[reportArgumentType]
        model.set_submodule(name, nn.ModuleList(grown))
        _grow_config(model.config.get_text_config(), len(layers), [source for source, _ in sources])
        _check(model, before)
        return f"{self.blocks} new layers, {len(grown)} in all; they change nothing before the first step"

    def choose(self, weights: Weights, named: bool, say: Say) -> Chosen:
        """The new layers."""
        blocks = weights.layers
        fresh = [is_new for _, is_new in places(len(blocks) - self.blocks, self.blocks)]
        return frozenset().union(*(block for block, new in zip(blocks, fresh, strict=True) if new))

    def describe(self) -> str:
        return f"{self.blocks} new layers (LLaMA Pro)"


def places(number: int, new: int) -> list[tuple[int, bool]]:
    """For each layer of the grown model, which of `number` layers it is or is a copy of, and whether it is new."""
    if new > number:
        raise ConfigError(f"tune.blocks is {new}, but this model has only {number} layers to copy. Lower it")
    ends = {(group + 1) * number // new - 1 for group in range(new)}
    return [(old, fresh) for old in range(number) for fresh in (False, True)[: 1 + (old in ends)]]


@torch.no_grad()
def _silence(layer: nn.Module) -> None:
    """Sets the last matrix of each branch to zero, with its bias."""
    describe = describers().get(type(layer).__name__)
    last: list[str] = []
    if describe is not None:
        described = describe(layer)
        last = [described.attention.output]
        last += [described.mlp.output] if isinstance(described.mlp, Mlp) else []
    for name, parameter in layer.named_parameters():
        path = name.split(".")
        by_description = any(name.startswith(f"{one}.") for one in last)
        if by_description or (len(last) < 2 and any(part in _LAST for part in path)):
            parameter.zero_()


def _grow_config(config: Any, number: int, sources: list[int]) -> None:
    """The configuration of the grown model: the number of layers, and whatever it lists for each of them."""
    lists = {
        key: value
        for key, value in config.to_dict().items()
        if isinstance(value, list) and len(value) == number and "token" not in key and key != "architectures"
    }
    config.num_hidden_layers = len(sources)
    for key, value in lists.items():
        setattr(config, key, [value[source] for source in sources])


def _sketch(model: PreTrainedModel) -> Tensor | None:
    """The hidden states of a few tokens; None of a model without numbers."""
    table: Any = model.get_input_embeddings()
    if table.weight.is_meta:
        return None
    tokens = torch.arange(1, 9, device=table.weight.device)[None] % table.weight.shape[0]
    with torch.no_grad():
        return model.base_model(input_ids=tokens, use_cache=False).last_hidden_state


def _check(model: PreTrainedModel, before: Tensor | None) -> None:
    """The grown model computes what the old one did, and transformers builds the same from its configuration."""
    after = _sketch(model)
    if before is not None and after is not None and not torch.equal(after, before):
        raise ConfigError(
            f"tune.name is expand, but copies of layers of {type(model).__name__} cannot be made to add nothing. Take "
            "another model, or another way to tune"
        )
    with torch.device("meta"):
        built = type(model)(copy.deepcopy(model.config))
    shapes = [{name: p.shape for name, p in one.named_parameters()} for one in (built, model)]
    if shapes[0] != shapes[1]:
        raise ConfigError(
            f"tune.name is expand, but transformers would not load a {type(model).__name__} with more layers in these "
            "places. Take another number of tune.blocks, or another way to tune"
        )
