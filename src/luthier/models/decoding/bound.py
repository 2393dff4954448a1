"""A model taken apart for decoding: each layer's tensors, read from its modules as they are now.

What a layer is made of is said by the files in models/families. Nothing is copied, so the weights that are read
later are those of that moment (what is stored in few bits is decoded when it is used, into one buffer; what is trained
to be stored so is read rounded, as it is now); modules that are exchanged (an adapter put on) need a new binding.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.kernels.attention import AttentionRule
from luthier.kernels.gated import KINDS
from luthier.kernels.quant.base import Stored
from luthier.models.families._common import describers, norm_eps
from luthier.models.fused import parts
from luthier.models.lora import LoraLinear, WholeModule
from luthier.models.peft_adapters.held import is_of_peft
from luthier.models.quantised.embeddings import StoredHead
from luthier.models.quantised.linear import QuantLinear
from luthier.models.rounded.linear import RoundedLinear
from luthier.models.token_rows import TokenRows


class CannotBind(Exception):
    """Why a model cannot be decoded from its parts, in a few words."""


@dataclass(frozen=True)
class BoundLinear:
    """y = x·Wᵀ + bias + scale · (x·Aᵀ)·Bᵀ; the low-rank part may be absent, the weight stored in few bits."""

    weight_NK: Tensor | Stored
    bias_N: Tensor | None
    a_RK: Tensor | None = None
    b_NR: Tensor | None = None
    scale: float = 1.0

    @property
    def num_out(self) -> int:
        """N."""
        return self.weight_NK.shape[0]


@dataclass(frozen=True)
class BoundNorm:
    """An RMS norm with the tensor of its weight."""

    weight_D: Tensor
    eps: float
    offset: float


@dataclass(frozen=True)
class BoundAttention:
    """The attention half of a layer."""

    projections: tuple[BoundLinear, ...]
    output: BoundLinear
    num_heads: int
    num_key_heads: int
    head_size: int
    rule: AttentionRule
    pre_norm: BoundNorm | None
    post_norm: BoundNorm | None
    query_norm: BoundNorm | None
    key_norm: BoundNorm | None
    norm_each_head: bool
    rotary: bool
    kind: str | None
    """Which rotary tables it takes, where a model has several."""


@dataclass(frozen=True)
class BoundMlp:
    """The feed-forward half of a layer."""

    projections: tuple[BoundLinear, ...]
    output: BoundLinear
    activation: str
    pre_norm: BoundNorm | None
    post_norm: BoundNorm | None


@dataclass(frozen=True)
class BoundOwnMlp:
    """A feed-forward half that the layer's own module computes, such as a mixture of experts."""

    module: nn.Module
    pre_norm: BoundNorm
    dtype: torch.dtype
    """What the module computes in."""


@dataclass(frozen=True)
class BoundLayer:
    """A decoder layer."""

    attention: BoundAttention
    mlp: BoundMlp | BoundOwnMlp
    multiplier: float


@dataclass(frozen=True)
class BoundModel:
    """A causal language model: modules before and behind the layers, and the layers' tensors."""

    embedding: nn.Module
    multiplier: float
    """On the embedded tokens."""
    rotary: nn.Module
    kinds: tuple[str | None, ...]
    """Kinds of rotary tables; (None,) where there is one."""
    layers: tuple[BoundLayer, ...]
    norm: nn.Module
    head: BoundLinear


def bind(model: PreTrainedModel) -> BoundModel:
    """Takes the model apart. Raises CannotBind with the reason where that is not possible."""
    base: Any = model.base_model
    for name in ("embed_tokens", "layers", "norm", "rotary_emb"):
        if not isinstance(getattr(base, name, None), nn.Module):
            raise CannotBind(f"{type(base).__name__} has no {name}")
    _refuse_changing_rotary(model.config)
    if base._forward_pre_hooks:
        raise CannotBind("something that was learned stands before the tokens")
    by_type = "layer_type" in inspect.signature(base.rotary_emb.forward).parameters
    known = describers()
    layers = tuple(_layer(layer, known, by_type) for layer in base.layers)
    sizes = {(layer.attention.num_key_heads, layer.attention.head_size) for layer in layers}
    if len(sizes) != 1:
        raise CannotBind("its layers' keys differ in size")
    return BoundModel(
        embedding=base.embed_tokens,
        multiplier=float(getattr(base, "embedding_multiplier", 1.0)),
        rotary=base.rotary_emb,
        kinds=tuple(dict.fromkeys(layer.attention.kind for layer in layers)),
        layers=layers,
        norm=base.norm,
        head=_linear("the head", model.get_output_embeddings()),
    )


def _refuse_changing_rotary(config: Any) -> None:
    """Tables that change with the longest sequence read so far would depend on what else is in the batch."""
    text = config.get_text_config(decoder=True)
    rope = getattr(text, "rope_parameters", None) or {}
    for part in (rope, *rope.values()):
        if isinstance(part, dict) and part.get("rope_type") in ("longrope", "dynamic"):
            raise CannotBind(f"its rotary embedding ({part['rope_type']}) changes with the length")
    if getattr(text, "attention_chunk_size", None):
        raise CannotBind("its attention is cut into chunks of positions")


def _layer(layer: nn.Module, known: dict[str, Any], by_type: bool) -> BoundLayer:
    name = type(layer).__name__
    if name not in known:
        raise CannotBind(f"no file in models/families describes {name}")
    for path, module in layer.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise CannotBind(f"{path or name} has hooks")
        if is_of_peft(module):
            raise CannotBind(f"{path} has an adapter of the library peft")
    described: parts.Layer = known[name](layer)
    kind = getattr(layer.get_submodule("self_attn"), "layer_type", None) if by_type else None
    return BoundLayer(
        _attention(layer, described.attention, kind), _mlp(layer, described.mlp), described.multiplier
    )


def _attention(layer: nn.Module, spec: parts.Attention, kind: str | None) -> BoundAttention:
    return BoundAttention(
        projections=_linears(layer, spec.projections),
        output=_linears(layer, (spec.output,))[0],
        num_heads=spec.num_heads,
        num_key_heads=spec.num_key_heads,
        head_size=spec.head_size,
        rule=spec.rule,
        pre_norm=_norm(layer, spec.pre_norm),
        post_norm=_norm(layer, spec.post_norm),
        query_norm=_norm(layer, spec.query_norm),
        key_norm=_norm(layer, spec.key_norm),
        norm_each_head=spec.norm_each_head,
        rotary=spec.rotary,
        kind=kind,
    )


def _mlp(layer: nn.Module, spec: parts.Mlp | parts.OwnMlp) -> BoundMlp | BoundOwnMlp:
    if isinstance(spec, parts.OwnMlp):
        module, norm = layer.get_submodule(spec.module), layer.get_submodule(spec.norm)
        pre_norm = _norm(layer, parts.Norm(spec.norm, norm_eps(norm)))
        assert pre_norm is not None
        return BoundOwnMlp(module, pre_norm, next(module.parameters()).dtype)
    if spec.activation not in KINDS:
        raise CannotBind(f"its activation is {spec.activation}")
    return BoundMlp(
        projections=_linears(layer, spec.projections),
        output=_linears(layer, (spec.output,))[0],
        activation=spec.activation,
        pre_norm=_norm(layer, spec.pre_norm),
        post_norm=_norm(layer, spec.post_norm),
    )


def _norm(layer: nn.Module, norm: parts.Norm | None) -> BoundNorm | None:
    if norm is None:
        return None
    weight = layer.get_submodule(norm.name).weight
    assert isinstance(weight, Tensor)
    return BoundNorm(weight.detach(), norm.eps, norm.offset)


def _linears(layer: nn.Module, names: Sequence[str]) -> tuple[BoundLinear, ...]:
    return tuple(_linear(name, layer.get_submodule(name)) for name in names)


def _linear(name: str, module: Any) -> BoundLinear:
    """The layer's weights, and its adapter's if it has one that is switched on."""
    if isinstance(module, WholeModule | TokenRows):
        return BoundLinear(module.weight.detach(), None if module.bias is None else module.bias.detach())
    if isinstance(module, StoredHead):
        return BoundLinear(module.table.stored, None if module.bias is None else module.bias.detach())
    base: Any = module.root if isinstance(module, LoraLinear) else module
    plain = type(base) in (QuantLinear, RoundedLinear, nn.Linear)
    if not plain or "forward" in vars(base) or base._forward_hooks:
        raise CannotBind(f"{name} is a {type(base).__name__}")
    weight_NK = base.stored if isinstance(base, QuantLinear) else base.weight.detach()
    bias_N = None if module.bias is None else module.bias.detach()
    if isinstance(base, RoundedLinear):
        if base.rounding.inputs is not None:
            raise CannotBind(f"inputs of {name} are rounded")
        adapted = isinstance(module, LoraLinear) and module.enabled
        return BoundLinear(base.rounded(module.update() if adapted else None), bias_N)
    if isinstance(module, LoraLinear) and any(one.enabled for one in module.chain):
        if module.dora:
            raise CannotBind(f"{name} has an adapter with lengths of its own (DoRA)")
        a_RK, b_NR, scale = module.all_factors(enabled=True)
        return BoundLinear(weight_NK, bias_N, a_RK.detach(), b_NR.detach(), scale)
    return BoundLinear(weight_NK, bias_N)
