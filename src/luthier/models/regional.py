"""Decoder layers through torch.compile, each on its own (regional compilation).

All layers of a model run the same code, so one is compiled and the others take its result from torch's cache:
the first step waits for one layer, not for the model. Attention over segments stays outside, because what it
does depends on where the segments lie; so does every layer that is already computed by fused halves.

Only the instances are touched: `nn.Module.compile` changes how this one object is called.
"""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel


def decoder_layers(model: PreTrainedModel) -> Sequence[nn.Module]:
    """The layers that the hidden state goes through, found by their number; none if the model keeps no such list."""
    number = model.config.get_text_config().num_hidden_layers
    for module in model.modules():  # from the outside in, so before lists inside a layer
        if isinstance(module, nn.ModuleList) and len(module) == number:
            return list(module)
    return []


def compile_layers(model: PreTrainedModel) -> str:
    """Compiles every plain decoder layer when it is first called; says what was done, in a sentence."""
    layers = decoder_layers(model)
    plain = [layer for layer in layers if "forward" not in vars(layer)]  # a forward of its own: fused
    for layer in plain:
        layer.compile(dynamic=True)
    if not plain:
        reason = "all are fused" if layers else "the model keeps no list of them"
        return f"no decoder layer is compiled: {reason}"
    return f"compiling {len(plain)} of {len(layers)} decoder layers on first use"
