"""The sizes of a run, from its config and the model's config.json alone: no weight is read, no memory is taken.

The model is built on torch's device `meta`, where tensors have shapes but no numbers, and goes through the same hands
as in training: layers are stored in few bits, adapters put on, layers fused, an optimizer built. Each is then asked
what it takes. Only what lives for a moment is reckoned here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from luthier.config.tree import Config
from luthier.errors import ModelError
from luthier.kernels.decoded_head import block_rows
from luthier.kernels.head import most_rows
from luthier.kernels.quant.base import Stored
from luthier.kernels.rounded_linears import RoundedLinears
from luthier.models.activations.levels import Level, Plannable
from luthier.models.activations.plan import Budget, Correction, choose, options_of
from luthier.models.device import DTYPES, pick_dtype
from luthier.models.fused.fuse import fuse
from luthier.models.fused.half import Half
from luthier.models.fused.layer import FusedLayer
from luthier.models.load import HUB_ID, resolve_model
from luthier.models.lora import LoraLinear, adapters
from luthier.models.lora_targets import output_embeddings
from luthier.models.quantised.embeddings import StoredHead
from luthier.models.quantised.linear import QuantLinear
from luthier.models.quantised.load import num_weights, quantised
from luthier.models.quantised.tables import stored_tables, table_weights
from luthier.models.quantised.weight import StoredWeight
from luthier.models.rounded.apply import chosen_rounding, round_linears
from luthier.optim.stepper import Stepper
from luthier.plan.memory import GPU_CONTEXT, Kept, Sizes
from luthier.training.adapt import adapt
from luthier.training.living import update_bytes
from luthier.training.sketch_storage import store_shapes
from luthier.training.tune import build_way
from luthier.training.turns import build_turns
from luthier.training.updates import build_optimizer

AT_ZERO = ("kaiming", "gaussian", "orthogonal", "eva")
"""Starts of adapters at which they add nothing; all others keep what they started as beside them."""


@dataclass(frozen=True)
class Sketch:
    """A model without numbers, ready for training."""

    config: Config
    layers: Sequence[Plannable]
    """Its decoder layers, from first to last."""
    fixed: Sizes
    """All sizes that do not depend on what layers keep."""
    notes: tuple[str, ...] = ()
    """What was reckoned rather than asked."""

    def sizes(self, level: Level | None = None, room: int | None = None) -> Sizes:
        """The sizes of a run.

        Args:
            level: what every layer keeps; absent: what `memory.activations` says.
            room: bytes that activations may take under `auto`; absent: as many as they want.
        """
        levels = _levels(self.config, self.layers, level, room)
        pairs = zip(self.layers, levels, strict=True)
        kept = tuple(Kept(one.bytes_per_token(at), one.bytes_per_token(Level.KEEP_ALL)) for one, at in pairs)
        fused = [layer for layer in self.layers if isinstance(layer, FusedLayer)]
        again = Level.KEEP_ATTENTION in levels or self.config.data.holds_out
        return replace(self.fixed, kept=kept, buffers=_buffers(fused, again))


def sketch(config: Config, model: PreTrainedConfig | None = None, *, device: str = "cpu") -> Sketch:
    """The model of a run as it would be trained, without numbers.

    Args:
        model: the model's configuration; absent: that of `model.name`.
        device: where it would train, `cpu` or `cuda`.

    Raises:
        LuthierError: the config names what is not there or cannot work.
    """
    where, notes = torch.device(device), []
    dtype = _dtype(config, device)
    bare = _bare(model or model_config(config), dtype)
    notes += store_shapes(config, bare)
    if (way := build_way(config)) is not None:
        way.reshape(bare)
    notes += _unknown(config)
    round_linears(bare, chosen_rounding(config))
    adapt(_started_plainly(config), bare, [], [], _say_nothing)
    if config.lora is not None and config.lora.init not in AT_ZERO:
        _keep_starts(bare)
    fused = fuse(bare).layers if config.model.fused else ()
    if not fused:
        notes.append("no layer is fused: activations are a rough estimate")
    trained = [(name, p) for name, p in bare.named_parameters() if p.requires_grad]
    optimizer = build_optimizer(config, trained, bare)
    shape = bare.config.get_text_config()
    turns = build_turns(config, bare, optimizer)
    most = turns.most() if turns else [parameter for _, parameter in trained]
    sizes: dict[str, Any] = _weights(bare, fused) | _of_training(config, trained, most, optimizer)
    fixed = Sizes(
        num_weights=num_weights(bare) - sum(p.numel() for _, p in trained) * (config.lora is not None),
        **sizes,
        fresh=_fresh(bare, fused),
        hidden=shape.hidden_size * dtype.itemsize,
        logit=shape.vocab_size * dtype.itemsize,
        most_predictions=most_rows(where, dtype, shape.vocab_size),
        loading=_loading(bare, dtype) if device == "cpu" else 0,  # weights are stored before they go to a GPU
        context=GPU_CONTEXT if device == "cuda" else 0,
    )
    return Sketch(config, fused or _layers(bare, dtype), fixed, tuple(notes))


def _unknown(config: Config) -> list[str]:
    """What cannot be asked of a model without numbers."""
    notes = []
    if config.peft is not None:
        notes.append("adapters of peft are not planned: counted as if all weights were tuned")
    if config.tune is not None and config.tune.name == "spectrum":
        notes.append("as many matrices of each kind as spectrum chooses, whichever they will be")
    return notes


def model_config(config: Config) -> PreTrainedConfig:
    """The configuration of the config's model; of a hub id only that one file is fetched."""
    name, section = config.model.name, config.model
    if HUB_ID.fullmatch(name) and not Path(name).expanduser().exists():
        try:
            return AutoConfig.from_pretrained(
                name, revision=section.revision, local_files_only=config.offline
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"model {name}: its config.json cannot be had ({error})") from error
    folder = resolve_model(name, revision=section.revision, offline=config.offline)
    return AutoConfig.from_pretrained(folder, local_files_only=True)


def _bare(model: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(model, dtype=dtype)


def _dtype(config: Config, device: str) -> torch.dtype:
    if config.model.dtype != "auto":
        return DTYPES[config.model.dtype]
    return pick_dtype("auto", torch.device("cpu")) if device == "cpu" else torch.bfloat16


def _started_plainly(config: Config) -> Config:
    """The same config with adapters that start without looking at weights."""
    if config.lora is None:
        return config
    lora = config.lora.model_copy(update={"init": "kaiming"})
    return config.model_copy(update={"lora": lora})


def _keep_starts(model: PreTrainedModel) -> None:
    for module in adapters(model).values():
        if isinstance(module, LoraLinear):
            module.start_A, module.start_B = module.lora_A.detach(), module.lora_B.detach()


def _say_nothing(line: str) -> None:
    """What a run would tell meanwhile."""


class _PlainLayer:
    """A layer of transformers as it is, with costs that were reckoned."""

    levels = (Level.KEEP_ALL, Level.KEEP_INPUT, Level.OFFLOAD_INPUT)
    level = Level.KEEP_ALL

    def __init__(self, layer: nn.Module, width: int, dtype: torch.dtype):
        linear = [m for m in layer.modules() if isinstance(m, nn.Linear | QuantLinear)]
        numbers = sum(m.in_features + m.out_features for m in linear) + 12 * width
        self.whole, self.input = 3 * numbers * dtype.itemsize // 2, width * dtype.itemsize
        self.flops = 2.0 * sum(m.in_features * m.out_features for m in linear)

    def bytes_per_token(self, level: Level) -> int:
        return {Level.KEEP_ALL: self.whole, Level.OFFLOAD_INPUT: 0}.get(level, self.input)

    def flops_per_token(self, level: Level) -> float:
        return 0.0 if level is Level.KEEP_ALL else self.flops


def _layers(model: PreTrainedModel, dtype: torch.dtype) -> list[_PlainLayer]:
    """The decoder layers, told by the longest list of modules that there is."""
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    longest = max(lists, key=len, default=nn.ModuleList())
    return [_PlainLayer(layer, model.config.get_text_config().hidden_size, dtype) for layer in longest]


def _levels(
    config: Config, layers: Sequence[Plannable], level: Level | None, room: int | None
) -> list[Level]:
    """What each layer keeps under the plan."""
    modes = {"keep": Level.KEEP_ALL, "recompute": Level.KEEP_INPUT, "offload": Level.OFFLOAD_INPUT}
    level = level or modes.get(config.memory.activations)
    levels = [level or Level.KEEP_ALL] * len(layers)
    if level is None and room is not None:
        tokens = config.train.micro_tokens
        options = [options_of(layer) for layer in layers]
        working = max((max(o.bytes for o in one) for one in options), default=0)
        levels = list(choose(options, tokens, Budget(room, 0, Correction(extra=working))).levels)
    return levels


def _weights(model: PreTrainedModel, fused: Sequence[FusedLayer]) -> dict[str, int]:
    """Stored, frozen and decoded weights."""
    few_bits = [*quantised(model).values(), *table_weights(model)]
    stored = sum(module.stored.num_bytes for module in few_bits)
    frozen = sum(p.numel() * p.element_size() for p in model.parameters() if not p.requires_grad)
    frozen += sum(b.numel() * b.element_size() for m in _besides(model) for b in m.buffers(recurse=False))
    tails, largest = 0, 0
    for linears in (linears for layer in fused for half in layer.halves for linears in _groups(half)):
        weights = [layer.weight_MK for layer in linears.layers]
        whole = (linears.num_out + linears.spare) * (linears.num_in + linears.spare)
        if isinstance(
            linears, RoundedLinears
        ):  # rounded in fp32, one layer after the other, from a sum in fp32
            one = max(weight.shape[0] * weight.shape[1] for weight in weights)
            rounded = linears.num_out * linears.num_in * weights[0].dtype.itemsize
            largest = max(largest, rounded + 2 * 4 * one)
        elif any(isinstance(weight, Stored) for weight in weights):
            largest = max(largest, whole * weights[0].dtype.itemsize)
        elif linears.spare:
            tails += (whole - linears.num_out * linears.num_in) * weights[0].dtype.itemsize
    heads = [one.table for one in stored_tables(model).values() if isinstance(one, StoredHead)]
    of_head = sum(block_rows(one.shape, one.dtype) * one.shape[1] * one.dtype.itemsize for one in heads)
    return {"stored": stored, "frozen": frozen + tails, "decoded": largest + of_head}


def _besides(model: PreTrainedModel) -> list[nn.Module]:
    """Modules whose buffers are not parts of stored weights."""
    return [module for module in model.modules() if not isinstance(module, StoredWeight)]


def _groups(half: Half) -> tuple[Any, Any]:
    return half.projections, half.residual.output


def _of_training(
    config: Config,
    trained: Sequence[tuple[str, nn.Parameter]],
    most: Sequence[nn.Parameter],
    optimizer: Stepper,
) -> dict[str, int]:
    """Trained weights, and gradients, states and what an update takes for a moment of the `most` at a time."""
    weights = [parameter for _, parameter in trained]
    states = sum(optimizer.state_bytes(parameter) for parameter in most)
    if config.memory.optimizer == "disk":
        states = 0  # page cache, which the kernel takes back when it needs it
    if config.train.average is not None:
        states += sum(4 * parameter.numel() for parameter in weights)
    gradients = [4 * parameter.numel() for parameter in most]
    in_backward = config.train.optimizer_in_backward  # each gradient goes as soon as it was used
    return {
        "trained": sum(p.numel() * p.element_size() for p in weights),
        "gradients": max(gradients, default=0) if in_backward else sum(gradients),
        "states": states,
        "update": update_bytes(optimizer),
    }


def _fresh(model: PreTrainedModel, fused: Sequence[FusedLayer]) -> int:
    """Gradients of whole weights that are there before they are added up: of the head, or of a half of a layer."""
    head = output_embeddings(model)
    own = [p for p in head.parameters() if p.requires_grad] if head is not None else []
    of_head = sum(p.numel() * (4 + (p.element_size() if p.element_size() < 4 else 0)) for p in own)
    of_halves = [
        sum(p.numel() * p.element_size() for p in half.parameters if p.dim() > 1)
        for layer in fused
        for half in layer.halves
        if not half.projections.spare
    ]
    return max(of_head, *of_halves, 0)


def _buffers(fused: Sequence[FusedLayer], again: bool) -> int:
    """Bytes per token of the workspace that all layers share: each buffer as large as the largest that asks for it."""
    sizes: dict[str, int] = {}
    for layer in fused:
        for half in layer.halves:
            for name, numbers in half.buffers(again).items():
                sizes[name] = max(sizes.get(name, 0), numbers * layer.dtype.itemsize)
    return sum(sizes.values())


def _loading(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """The largest weight as it is read and, where it is stored, what encoding takes beside it. Embeddings and head are
    read as a whole before they are stored."""
    stored = [m.in_features * m.out_features for m in quantised(model).values()]
    plain = [p.numel() for p in model.parameters()]
    tables = sum(one.shape[0] * one.shape[1] for one in table_weights(model))
    return max(max(stored, default=0) * 4, max(plain, default=0) * dtype.itemsize, tables * dtype.itemsize)
