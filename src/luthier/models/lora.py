"""Adapters of the LoRA family on one model instance: put on, switch off, merge, take off.

Three wrappers do all of it. `LoraLinear` adds a low-rank update to a linear layer; `WholeModule` trains
another module's own weights (`lora.modules_to_save`); `TokenRows` those of new tokens. All keep the module they
wrap as `base`, untouched when the adapter is switched off, and answer for it where transformers reads its
attributes. Nothing is kept outside the model.

Shape suffixes: K inputs, M outputs, R rank.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers.pytorch_utils import Conv1D

from luthier.errors import ModelError
from luthier.kernels.lora_linear import dropout_mask, lora_linear
from luthier.models.lora_targets import match_saved, match_targets, owners
from luthier.models.token_rows import TokenRows, token_holders


def lora_scale(rank: int, alpha: float, rslora: bool) -> float:
    """Factor on the update B·A: alpha / r, or alpha / √r when rank-stabilised (arXiv:2312.03732)."""
    return alpha / (math.sqrt(rank) if rslora else rank)


def low_rank_update(a_RK: Tensor, b_MR: Tensor, scale: float, transposed: bool) -> Tensor:
    """The change of the weight that an adapter stands for: s · B·A, [M, K], or [K, M] if `transposed`."""
    delta_MK = (b_MR @ a_RK) * scale
    return delta_MK.T if transposed else delta_MK


def add_update(weight: Tensor, delta: Tensor) -> Tensor:
    """Weight plus update, summed in at least fp32 and rounded once to the weight's dtype."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    return (weight.to(wide) + delta.to(wide)).to(weight.dtype)


class LoraLinear(nn.Module):
    """A frozen linear layer and its low-rank update: y = base(x) + s · drop(x)·Aᵀ·Bᵀ.

    `lora_A` [R, K] and `lora_B` [M, R] are fp32 masters. `weight` is the weight that is in effect, update
    included, so that code which reads it instead of calling the module computes the same function;
    `base.weight` is the frozen one.
    """

    def __init__(self, base: nn.Module, rank: int, alpha: float, dropout: float = 0.0, rslora: bool = False):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.transposed = isinstance(base, Conv1D)
        self.rank, self.alpha, self.dropout, self.rslora = rank, alpha, dropout, rslora
        self.enabled = True
        frozen = self._base_weight()
        wide = torch.promote_types(frozen.dtype, torch.float32)
        self.lora_A = nn.Parameter(torch.zeros(rank, self.in_features, dtype=wide, device=frozen.device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, dtype=wide, device=frozen.device))

    @classmethod
    def from_base(
        cls,
        base: nn.Module,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        rslora: bool = False,
        generator: torch.Generator | None = None,
    ) -> "LoraLinear":
        """A new adapter as PEFT starts it: A uniform in ±1/√K (Kaiming, a = √5), B zero: no change yet.

        A is drawn on the CPU, so that a seed gives the same adapter on every device.
        """
        adapter = cls(base, rank, alpha, dropout, rslora)
        drawn_RK = torch.empty(adapter.lora_A.shape)
        nn.init.kaiming_uniform_(drawn_RK, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            adapter.lora_A.copy_(drawn_RK)
        return adapter

    @property
    def scale(self) -> float:
        """Factor on the update."""
        return lora_scale(self.rank, self.alpha, self.rslora)

    @property
    def in_features(self) -> int:
        """K, whatever the layout of the weight."""
        return self._base_weight().shape[0 if self.transposed else 1]

    @property
    def out_features(self) -> int:
        """M, whatever the layout of the weight."""
        return self._base_weight().shape[1 if self.transposed else 0]

    @property
    def weight(self) -> Tensor:
        """The weight in effect, in the base's layout and dtype; differentiable in A and B."""
        if not self.enabled:
            return self._base_weight()
        update = low_rank_update(self.lora_A, self.lora_B, self.scale, self.transposed)
        return add_update(self._base_weight(), update)

    @property
    def bias(self) -> Tensor | None:
        """The base's bias; LoRA does not touch it."""
        return getattr(self.base, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base(x)
        mask = dropout_mask(x, self.dropout) if self.training and self.dropout > 0 else None
        if self._base_is_plain():
            weight = self._base_weight()
            weight_MK = weight.T if self.transposed else weight
            return lora_linear(x, weight_MK, self.bias, self.lora_A, self.lora_B, self.scale, mask)
        dropped = x if mask is None else x * mask
        low = self.scale * (dropped @ self.lora_A.to(x.dtype).T)
        return self.base(x) + low @ self.lora_B.to(x.dtype).T

    def widened(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input and weight [M, K + R] whose product is the layer's: y = [x | s·drop(x)·Aᵀ] · [W | B]ᵀ."""
        weight = self._base_weight()
        weight_MK, x = (weight.T if self.transposed else weight), x.to(weight.dtype)
        if not self.enabled:
            return x, weight_MK
        mask = dropout_mask(x, self.dropout) if self.training and self.dropout > 0 else None
        dropped = x if mask is None else x * mask
        low = self.scale * (dropped @ self.lora_A.to(x.dtype).T)
        return torch.cat([x, low], -1), torch.cat([weight_MK, self.lora_B.to(weight.dtype)], 1)

    def delta_weight(self) -> Tensor:
        """What the adapter adds to the base's weight, in the base's layout and the masters' fp32."""
        with torch.no_grad():
            return low_rank_update(self.lora_A, self.lora_B, self.scale, self.transposed)

    def merge(self) -> nn.Module:
        """Adds the update to the base's weight, in place and rounded once, and returns the base."""
        with torch.no_grad():
            weight = self._base_weight()
            weight.copy_(add_update(weight, self.delta_weight()))
        return self.base

    def extra_repr(self) -> str:
        return f"rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}, rslora={self.rslora}"

    def _base_weight(self) -> Tensor:
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def _base_is_plain(self) -> bool:
        """Whether the base does x·Wᵀ + b and nothing else: no forward of its own, no hooks."""
        base = self.base
        own = type(base).forward not in (nn.Linear.forward, Conv1D.forward) or "forward" in vars(base)
        return not (own or base._forward_hooks or base._forward_pre_hooks)


class WholeModule(nn.Module):
    """A module whose own weights are trained, as fp32 masters, while it goes on computing in its own dtype.

    `base` holds the masters. The weights it came with are kept beside them, for `disable_adapters`; they
    are no part of the state. Attributes that are not found here are the base's; its weights are handed out
    in the dtype it computes in.
    """

    def __init__(self, base: nn.Module, masters: dict[int, nn.Parameter]):
        """`masters`: by the id of the parameter they stand for; shared between modules with tied weights."""
        super().__init__()
        self.base = base
        self.enabled = True
        self.names = [name for name, _ in base.named_parameters(remove_duplicate=False)]
        for index, name in enumerate(self.names):
            owner, _, leaf = name.rpartition(".")
            original = base.get_parameter(name)
            if id(original) not in masters:
                wide = torch.promote_types(original.dtype, torch.float32)
                masters[id(original)] = nn.Parameter(original.detach().to(wide, copy=True))
            setattr(base.get_submodule(owner), leaf, masters[id(original)])
            self.register_buffer(f"original_{index}", original.detach(), persistent=False)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        weights = self._weights()
        if all(weight is self.base.get_parameter(name) for name, weight in weights.items()):
            return self.base(*args, **kwargs)
        return functional_call(self.base, weights, args, kwargs)

    def original(self, name: str) -> Tensor:
        """The weight that the module came with."""
        return self.get_buffer(f"original_{self.names.index(name)}")

    def restore(self, rounded: dict[int, nn.Parameter]) -> nn.Module:
        """The base with its masters rounded to the dtype it came with, frozen. Call it once.

        `rounded`: by the id of the master they come from; shared, so that tied weights stay tied.
        """
        for name in self.names:
            owner, _, leaf = name.rpartition(".")
            master = self.base.get_parameter(name)
            if id(master) not in rounded:
                weight = master.detach().to(self.original(name).dtype)
                rounded[id(master)] = nn.Parameter(weight, requires_grad=False)
            setattr(self.base.get_submodule(owner), leaf, rounded[id(master)])
        return self.base

    def _weights(self) -> dict[str, Tensor]:
        if not self.enabled:
            return {name: self.original(name) for name in self.names}
        return {name: self.base.get_parameter(name).to(self.original(name).dtype) for name in self.names}

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = super().__getattr__("base")
        if name in self.names:
            return self._weights()[name]
        return getattr(base, name)


Adapter = LoraLinear | WholeModule | TokenRows


@dataclass(frozen=True)
class LoraReport:
    """What an adapter touches: the adapted and the wholly trained modules, and their share of the model."""

    targets: tuple[str, ...]
    saved: tuple[str, ...]
    num_trainable: int


def apply_lora(
    model: nn.Module,
    *,
    rank: int,
    alpha: float | None = None,
    dropout: float = 0.0,
    rslora: bool = False,
    target: str | Sequence[str] = "all",
    modules_to_save: Sequence[str] = (),
    tokens: Sequence[int] = (),
    train_tokens: bool = True,
    generator: torch.Generator | None = None,
) -> LoraReport:
    """Puts new adapters on `model`, in place, and freezes all else. The model computes what it did before.

    `alpha`: twice the rank if absent. `target`: "all" (every linear layer but the head), names, or one
    regular expression for full names. `modules_to_save` are trained whole, and so is every module that
    shares their weights. The embeddings of `tokens` are part of the adapter, trained or not. Raises ModelError
    where names do not fit the model or it has adapters already; the model is then unchanged.
    """
    refuse_adapted(model)
    saved = match_saved(model, modules_to_save)
    targets = match_targets(model, target, saved)
    holders = token_holders(model, saved, targets) if tokens else []
    model.requires_grad_(False)
    wrap_whole(model, saved)
    for names in holders:
        wrap_tokens(model, names, tokens).requires_grad_(train_tokens)
    for name in targets:
        base = model.get_submodule(name)
        put(model, name, LoraLinear.from_base(base, rank, alpha or 2.0 * rank, dropout, rslora, generator))
    return report(model)


def adapters(model: nn.Module) -> dict[str, Adapter]:
    """The adapted and wholly trained modules by full name, in the model's order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Adapter)}


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All that an adapter consists of (A, B, masters, rows of tokens) by its name in the model, each once."""
    found: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for name, module in adapters(model).items():
        for part, parameter in module.named_parameters():
            is_frozen_base = not isinstance(module, WholeModule) and part.startswith("base.")
            if not is_frozen_base and id(parameter) not in seen:
                seen.add(id(parameter))
                found[f"{name}.{part}"] = parameter
    return found


@contextmanager
def disable_adapters(model: nn.Module) -> Iterator[None]:
    """Within it the model computes what it did before it was adapted; afterwards all is as it was."""
    before = [(module, module.enabled) for module in adapters(model).values()]
    try:
        for module, _ in before:
            module.enabled = False
        yield
    finally:
        for module, enabled in before:
            module.enabled = enabled


def merge_adapters(model: nn.Module) -> None:
    """Makes the adapters part of the model's own weights, computed in fp32 and rounded once; wrappers go.

    A head that shares its weights with the input embeddings and has a low-rank update gets weights of its
    own first.
    """
    rounded: dict[int, nn.Parameter] = {}
    for name, module in adapters(model).items():
        if isinstance(module, LoraLinear):
            put(model, name, module.base)
            if len(owners(model)[id(module.base.weight)]) > 1:
                untie(model, name)
            module.merge()
        elif isinstance(module, TokenRows):
            put(model, name, module.merge())
        else:
            put(model, name, module.restore(rounded))


def refuse_adapted(model: nn.Module) -> None:
    """Raises ModelError if the model has adapters already."""
    present = adapters(model)
    if present:
        raise ModelError(
            f"This model already has adapters on {len(present)} modules (such as {next(iter(present))}). "
            "Merge them first (`merge_adapters`), or load the model anew."
        )


def wrap_whole(model: nn.Module, names: Sequence[str]) -> None:
    """Makes the modules trainable whole, in place; weights that they share stay shared."""
    masters: dict[int, nn.Parameter] = {}
    for name in names:
        put(model, name, WholeModule(model.get_submodule(name), masters))


def wrap_tokens(model: nn.Module, names: Sequence[str], tokens: Sequence[int]) -> nn.Parameter:
    """Gives the tokens rows of their own in the modules, which share them, in place. Returns the rows [N, D]."""
    rows: nn.Parameter | None = None
    for name in names:
        wrapped = TokenRows(model.get_submodule(name), tokens, rows)
        rows = wrapped.rows
        put(model, name, wrapped)
    assert rows is not None, "somebody holds them"
    return rows


def untie(model: nn.Module, name: str) -> None:
    """Gives the module its own copy of a weight that it shared, and has the model's config say so."""
    module = model.get_submodule(name)
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    module.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    config: Any = getattr(model, "config", None)
    if config is not None:
        config.tie_word_embeddings = False
    # transformers keeps a second record of what is tied; a stale one would drop the copy on saving.
    tied: Any = getattr(model, "all_tied_weights_keys", {})
    for target in [key for key, source in tied.items() if f"{name}.weight" in (key, source)]:
        del tied[target]


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts `module` in the place of the one at `name`, in this instance only."""
    parent, _, leaf = name.rpartition(".")
    module.train(model.get_submodule(name).training)
    setattr(model.get_submodule(parent), leaf, module)


def report(model: nn.Module) -> LoraReport:
    """What the adapters on this model touch."""
    present = adapters(model)
    return LoraReport(
        targets=tuple(name for name, module in present.items() if isinstance(module, LoraLinear)),
        saved=tuple(name for name, module in present.items() if isinstance(module, WholeModule)),
        num_trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )
