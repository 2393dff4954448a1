"""Adapters that start from what the model makes of the user's rows: inputs and gradients of each layer.

The adapters are switched off meanwhile, so fused layers hand on to the plain ones and every layer can be watched. One
layer's numbers are taken in as they come; nothing is kept for all layers at once.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from luthier.data.batch import Batch
from luthier.models.lora import LoraLinear, adapters_called, disable_adapters
from luthier.models.lora_init import Watching, load_watch, needs_rows
from luthier.models.lora_init.eva import shared_out
from luthier.models.policy import Policy


def begin_from_rows(policy: Policy, init: str, batches: Iterable[Batch], *, spread: float = 1.0) -> str:
    """Starts the policy's adapters as the file `init` of `models/lora_init/` makes of these rows.

    With `spread` above 1 ranks move between layers, to at most so many times the rank; returns what to say of that.
    Nothing else changes: no mode, no gradient, no random state.
    """
    linears = adapters_called(policy.model, "")
    make, gradients = load_watch(init), needs_rows(init) == "gradients"
    watches = {name: make(m.out_features, int(spread * m.rank), m.scale) for name, m in linears.items()}
    was_training = policy.training
    policy.eval()
    hooks = [m.root.register_forward_hook(_seen_by(watches[name], gradients)) for name, m in linears.items()]
    embedded: list[Tensor] = []
    if gradients:
        embedding = policy.model.get_input_embeddings()
        assert isinstance(embedding, nn.Module)
        hooks.append(embedding.register_forward_hook(partial(_begin_graph, embedded)))
    try:
        with disable_adapters(policy.model), torch.set_grad_enabled(gradients):
            for batch in batches:
                embedded.clear()
                logp_N = policy.sketch(batch)
                if gradients:  # those of the embedded tokens: no weight gets any
                    torch.autograd.grad(-logp_N.mean(), embedded)
    finally:
        for hook in hooks:
            hook.remove()
        policy.train(was_training)
    told = _move_ranks(linears, watches, spread) if spread > 1 else ""
    for name, module in linears.items():
        module.begin(*(factor.to(module.lora_A.device) for factor in watches[name].factors()))
    return told


def _move_ranks(linears: Mapping[str, LoraLinear], watches: Mapping[str, Any], spread: float) -> str:
    """Gives each layer the rank that its inputs want; says how far they moved."""
    shares = {name: watch.shares() for name, watch in watches.items()}
    ranks = shared_out(shares, {name: module.rank for name, module in linears.items()}, spread)
    for name, module in linears.items():
        module.change_rank(ranks[name])
        watches[name].rank = ranks[name]
    return f"; ranks moved, {min(ranks.values())} to {max(ranks.values())}"


def _begin_graph(embedded: list[Tensor], module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    """A hook that lets the graph begin at the embedded tokens."""
    embedded.append(output.detach().requires_grad_())
    return embedded[-1]


def _seen_by(watch: Watching, gradients: bool) -> Callable[[nn.Module, Any, Tensor], None]:
    """A hook that shows a layer's inputs, and the gradients of its outputs, to what watches it."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x_TK = inputs[0].detach().flatten(0, -2)
        if not gradients:
            watch.see(x_TK)
            return

        def arrived(grad: Tensor) -> None:
            watch.see(x_TK, grad.detach().flatten(0, -2))

        output.register_hook(arrived)

    return hook
