"""A decoder layer of transformers, computed by two hand-written halves instead of its own forward.

The layer stays what it is: its class, its modules, its weights and their names. Only this one object's `forward`
is answered by a `FusedLayer`, which hands everything it was not made for (caches, padded batches, other dtypes,
switched-off adapters) on to the layer's own.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from luthier.kernels.attention import Forest
from luthier.kernels.decoded_linears import DecodedLinears
from luthier.kernels.eight_bit_linears import EightBitLinears
from luthier.kernels.gated import KINDS
from luthier.kernels.lengths import LengthenedLinears
from luthier.kernels.linears import Linear, Linears, LowRank, PackedLinears, SeparateLinears
from luthier.kernels.quant.base import Stored
from luthier.kernels.rounded_linears import RoundedLinears
from luthier.kernels.rounding import Rounding
from luthier.kernels.workspace import Workspace
from luthier.models.activations.levels import Level
from luthier.models.activations.offload import HostStore
from luthier.models.activations.plain import recomputing
from luthier.models.fused import parts
from luthier.models.fused.attention_half import AttentionHalf
from luthier.models.fused.half import Residual, Stream
from luthier.models.fused.mlp_half import MlpHalf
from luthier.models.fused.norm import BoundNorm
from luthier.models.lora import LoraLinear, WholeModule
from luthier.models.quantised.linear import QuantLinear
from luthier.models.rounded.linear import RoundedLinear


class CannotFuse(Exception):
    """Why a layer must run plain, in a few words."""


class FusedLayer:
    """Answers for one decoder layer's `forward`.

    Args:
        layer: the layer, its adapters in place.
        described: what it is made of.
        workspace: shared by all layers of a model, as they run one after the other.
        pack: whether frozen weights that read the same input are moved into one buffer.

    Raises:
        CannotFuse: the layer has something that the halves do not compute.
    """

    def __init__(self, layer: nn.Module, described: parts.Layer, workspace: Workspace, *, pack: bool = True):
        self.layer, self.described = layer, described
        self.plain = layer.forward
        _refuse_unseen(layer, _names(described))
        self.attention = _attention_half(layer, described, workspace, pack)
        self.mlp: MlpHalf | None = None
        if isinstance(described.mlp, parts.Mlp):
            self.mlp = _mlp_half(layer, described, workspace, pack)
        self.modules = {name: layer.get_submodule(name) for name in _names(described)}
        self.store = HostStore()
        """Where inputs wait that are offloaded; the planner gives all layers the same."""
        self._dtype = _one_dtype(self._linears())
        self._level = Level.KEEP_ALL

    def __call__(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        forest = kwargs.get("forest")
        if not (isinstance(forest, Forest) and self._applies(hidden_states)):
            return self.plain(hidden_states, *args, **kwargs)
        forest.windows.add(self.described.attention.rule.window)
        cos, sin = kwargs["position_embeddings"]
        stream = Stream(forest, cos[0], sin[0])
        for linears in self._linears():
            linears.refresh()
        if self._level in (Level.KEEP_ALL, Level.KEEP_ATTENTION) or not torch.is_grad_enabled():
            return self._halves(hidden_states, stream)
        return recomputing(self._level, self.store)(partial(self._halves, stream=stream), hidden_states)

    def _halves(self, hidden_1TD: Tensor, stream: Stream) -> Tensor:
        hidden_TD = self.attention(hidden_1TD[0], stream)
        return (self._own_mlp(hidden_TD) if self.mlp is None else self.mlp(hidden_TD, stream))[None]

    @property
    def dtype(self) -> torch.dtype:
        """What its weights are in; calls in another dtype go the plain way."""
        return self._dtype

    @property
    def level(self) -> Level:
        """What the layer keeps for its backward pass. Between the extremes, projections are made again."""
        return self._level

    @level.setter
    def level(self, level: Level) -> None:
        self._level = level
        for half in self.halves:
            half.recompute = level is Level.KEEP_ATTENTION

    @property
    def levels(self) -> tuple[Level, ...]:
        """All of them."""
        return tuple(Level)

    def bytes_per_token(self, level: Level) -> int:
        """What the halves keep for one token; of a feed-forward half that is the layer's own, an estimate."""
        size = self._dtype.itemsize
        entry = self.attention.residual.output.num_out  # the residual stream at the entry of a half
        if level is Level.OFFLOAD_INPUT:
            return 0
        if level is Level.KEEP_INPUT:
            return entry * size
        projected = level is Level.KEEP_ALL
        numbers = 2 * entry + sum(half.numbers_kept(projected) for half in self.halves)
        masks = sum(half.bytes_of_masks for half in self.halves)
        if self.mlp is None:
            numbers += 4 * entry + 2 * self._own_mlp_weights // max(1, entry)
        return numbers * size + masks

    def flops_per_token(self, level: Level) -> float:
        """Operations that are done again for one token; attention itself is not counted, as its length varies."""
        if level is Level.KEEP_ALL:
            return 0.0
        projections = [half.projections for half in self.halves]
        again = projections if level is Level.KEEP_ATTENTION else list(self._linears())
        weights = sum((linears.num_in + linears.spare) * linears.num_out for linears in again)
        own = self._own_mlp_weights if self.mlp is None and level is not Level.KEEP_ATTENTION else 0
        return 2.0 * (weights + own)

    @property
    def _own_mlp_weights(self) -> int:
        """Weights that one token meets in a feed-forward half of the layer's own, as many experts as it goes to."""
        spec = self.described.mlp
        assert isinstance(spec, parts.OwnMlp)
        total = 0
        for weight in self.modules[spec.module].parameters():
            stacked = weight.dim() == 3  # one matrix an expert
            total += (
                weight[0].numel() * spec.experts_per_token if stacked else weight.numel() * (weight.dim() > 1)
            )
        return total

    def release(self) -> None:
        """Gives the layer its own forward back, and its weights storage of their own."""
        del self.layer.forward
        for linears in self._linears():
            linears.unpack()

    def _applies(self, hidden_states: Tensor) -> bool:
        """Whether this call is what the halves were made for."""
        if hidden_states.shape[0] != 1 or hidden_states.dtype != self._dtype:
            return False
        if self.layer.training and any(self.described.dropouts):
            return False
        for name, module in self.modules.items():
            if self.layer.get_submodule(name) is not module or (
                isinstance(module, LoraLinear) and not all(one.enabled for one in module.chain)
            ):
                return False
            if isinstance(module, WholeModule) and not module.enabled:
                return False
        return True

    def _own_mlp(self, hidden_TD: Tensor) -> Tensor:
        """The feed-forward half by the layer's own modules."""
        spec = self.described.mlp
        assert isinstance(spec, parts.OwnMlp)
        branch = self.modules[spec.module](self.modules[spec.norm](hidden_TD[None]))
        return hidden_TD + (branch[0] if isinstance(branch, Tensor) else branch[0][0])

    @property
    def halves(self) -> tuple[AttentionHalf | MlpHalf, ...]:
        """The halves that are written by hand."""
        return (self.attention,) if self.mlp is None else (self.attention, self.mlp)

    def _linears(self) -> Iterator[Linears]:
        for half in self.halves:
            yield half.projections
            yield half.residual.output


def _refuse_unseen(layer: nn.Module, names: Sequence[str]) -> None:
    """Raises CannotFuse where a module that the halves bypass would do more than its weights say."""
    for name, module in layer.named_modules():
        whole = isinstance(module, WholeModule) and module.only is None
        if whole and any(n == name or n.startswith(f"{name}.") for n in names):
            raise CannotFuse(f"{name} is trained whole beside an adapter")
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        if name and any(hooks):
            raise CannotFuse(f"{name} has hooks")
        if name and "forward" in vars(module):
            raise CannotFuse(f"{name} has a forward of its own")


def _one_dtype(linears: Iterable[Linears]) -> torch.dtype:
    """The dtype that all weights have. Raises CannotFuse."""
    found = {weight.weight_MK.dtype for one in linears for weight in one.layers}
    if len(found) > 1:
        raise CannotFuse(f"weights of several dtypes: {', '.join(sorted(map(str, found)))}")
    return found.pop()


def _attention_half(
    layer: nn.Module, described: parts.Layer, workspace: Workspace, pack: bool
) -> AttentionHalf:
    spec = described.attention
    return AttentionHalf(
        spec,
        _residual(layer, spec, described.multiplier, workspace, pack),
        linears(layer, spec.projections, workspace, pack=pack),
        BoundNorm.of(layer, spec.query_norm),
        BoundNorm.of(layer, spec.key_norm),
    )


def _mlp_half(layer: nn.Module, described: parts.Layer, workspace: Workspace, pack: bool) -> MlpHalf:
    spec = described.mlp
    assert isinstance(spec, parts.Mlp)
    if spec.activation not in KINDS:
        raise CannotFuse(f"activation {spec.activation}")
    residual = _residual(layer, spec, described.multiplier, workspace, pack)
    return MlpHalf(residual, linears(layer, spec.projections, workspace, pack=pack), spec.activation)


def _residual(
    layer: nn.Module, spec: parts.Attention | parts.Mlp, multiplier: float, workspace: Workspace, pack: bool
) -> Residual:
    pre, post = BoundNorm.of(layer, spec.pre_norm), BoundNorm.of(layer, spec.post_norm)
    return Residual(pre, post, linears(layer, (spec.output,), workspace, pack=pack), multiplier, workspace)


def linears(layer: nn.Module, names: Sequence[str], workspace: Workspace, *, pack: bool = True) -> Linears:
    """The named linear layers, which read the same input, as one. Raises CannotFuse.

    `pack`: frozen weights go into one buffer. Where whole weights are trained they stay where they are, as checkpoints
    hold all weights then, and what lies in one buffer would be copied out of it.
    """
    found = [_linear(name, layer.get_submodule(name)) for name in names]
    roundings = {_rounding(layer.get_submodule(name)) for name in names}
    if len(roundings) > 1:
        raise CannotFuse(f"{names[0]} and its like are in part rounded")
    if (rounding := roundings.pop()) is not None:
        return RoundedLinears(found, rounding, workspace)
    stored = any(isinstance(part.weight_MK, Stored) for part in found)
    bare = not stored and not any(part.updates for part in found)
    if not any(_tuned(part, pack) for part in found) and (pack or not bare):
        lengths = any(update.magnitude_M is not None for part in found for update in part.updates)
        plain = [replace(part, bias_M=None) for part in found] if lengths else found
        group = _frozen([layer.get_submodule(name) for name in names], plain, workspace)
        group = LengthenedLinears(found, group) if lengths else group
        group.dropout, group.training = _dropout([layer.get_submodule(name) for name in names])
        return group
    if stored or any(part.updates for part in found):
        raise CannotFuse(f"{names[0]} and its like are in part trained whole, in part by an adapter")
    return SeparateLinears(found)


def _frozen(modules: Sequence[nn.Module], parts: list[Linear], workspace: Workspace) -> PackedLinears:
    """The group of layers that are not trained themselves, as they are stored. Raises CannotFuse."""
    bases = [module.root if isinstance(module, LoraLinear) else module for module in modules]
    in_8_bits = {isinstance(base, QuantLinear) and base.eight_bits for base in bases}
    if len(in_8_bits) > 1:
        raise CannotFuse("layers that read the same input are in part multiplied in 8 bits")
    if in_8_bits.pop():
        return EightBitLinears(parts)
    stored = any(isinstance(part.weight_MK, Stored) for part in parts)
    return DecodedLinears(parts, workspace) if stored else PackedLinears(parts)


def _linear(name: str, module: nn.Module) -> Linear:
    chain = module.chain if isinstance(module, LoraLinear) else []
    base: Any = chain[-1].base if chain else module
    bias_M = chain[0].lora_bias if chain else None
    if isinstance(base, WholeModule):  # of which only the bias is trained
        base, bias_M = base.base, base.base.get_parameter("bias")
    if type(base) not in (QuantLinear, RoundedLinear, nn.Linear):
        raise CannotFuse(f"{name} is a {type(base).__name__}")
    weight_MK = base.stored if isinstance(base, QuantLinear) else base.weight
    bias_M = base.bias if bias_M is None else bias_M
    first, *further = [_update(one) for one in chain] or [None]
    return Linear(weight_MK, bias_M, first, tuple(one for one in further if one is not None))


def _update(module: LoraLinear) -> LowRank:
    start = None if module.start_A is None or module.start_B is None else (module.start_A, module.start_B)
    return LowRank(module.lora_A, module.lora_B, module.scale, start, module.lora_magnitude)


def _rounding(module: nn.Module) -> Rounding | None:
    """How the layer's weight is rounded while it is trained."""
    base = module.root if isinstance(module, LoraLinear) else module
    return base.rounding if isinstance(base, RoundedLinear) else None


def _tuned(part: Linear, pack: bool) -> bool:
    """Whether it is trained itself; what is packed may have a trained bias."""
    return part.weight_MK.requires_grad or (
        not pack and part.bias_M is not None and part.bias_M.requires_grad
    )


def _dropout(modules: Sequence[nn.Module]) -> tuple[float, Callable[[], bool]]:
    """The dropout of the adapters among the modules, and what tells whether they are training. Raises CannotFuse."""
    adapted = [one for module in modules if isinstance(module, LoraLinear) for one in module.chain]
    found = {module.dropout for module in adapted}
    if len(found) > 1:
        raise CannotFuse("adapters that read the same input have several dropouts")
    return next(iter(found), 0.0), lambda: any(module.training for module in adapted)


def _names(described: parts.Layer) -> list[str]:
    """Every module that the halves read."""
    attention, mlp = described.attention, described.mlp
    names = [*attention.projections, attention.output]
    norms = [attention.pre_norm, attention.post_norm, attention.query_norm, attention.key_norm]
    if isinstance(mlp, parts.OwnMlp):
        names += [mlp.module, mlp.norm]
    else:
        names += [*mlp.projections, mlp.output]
        norms += [mlp.pre_norm, mlp.post_norm]
    return names + [norm.name for norm in norms if norm is not None]
