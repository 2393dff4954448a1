"""Adapters of the LoRA family on one model instance: put on, switch off, merge, take off.

Three wrappers do all of it. `LoraLinear` adds a low-rank update to a linear layer; `WholeModule` trains
another module's own weights (`lora.modules_to_save`); `TokenRows` those of new tokens. All keep the module they
wrap as `base`, untouched when the adapter is switched off, and answer for it where transformers reads its
attributes. Nothing is kept outside the model.

Shape suffixes: K inputs, M outputs, R rank.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.errors import ModelError
from luthier.kernels.dora import row_norms
from luthier.kernels.lora_linear import dropout_mask, lora_linear
from luthier.models.lora_init import load_init
from luthier.models.lora_patterns import in_layers, settings_of
from luthier.models.lora_targets import match_saved, match_targets, owners
from luthier.models.lora_weight import lora_scale, low_rank_update, updated
from luthier.models.quantised.linear import QuantLinear
from luthier.models.rounded.linear import RoundedLinear, Update
from luthier.models.swap import put, untie
from luthier.models.token_rows import TokenRows, token_holders
from luthier.models.whole_module import WholeModule


class LoraLinear(nn.Module):
    """A frozen linear layer and its low-rank update: y = base(x) + s · drop(x)·Aᵀ·Bᵀ.

    `lora_A` [R, K] and `lora_B` [M, R] are fp32 masters. If they started as something (`begin`), that is kept beside
    them, never trained, and taken off again: s · (B·A - B₀·A₀); `factors` are both. `weight` is the weight that is in
    effect, update included, so that code which reads it instead of calling the module computes the same function;
    `base.weight` is the frozen one.

    With `dora` (arXiv:2402.09353) every output's row of the weight in effect has the trained length `lora_magnitude`
    [M]: y = m / ‖W + s·B·A‖ ∘ (W·x + s·B·A·drop(x)) + bias.
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        rslora: bool = False,
        dora: bool = False,
    ):
        super().__init__()
        self.base = base.requires_grad_(False)
        self.transposed = isinstance(base, Conv1D)
        self.rank, self.alpha, self.dropout, self.rslora = rank, alpha, dropout, rslora
        self.enabled = True
        frozen = base if isinstance(base, QuantLinear) else self._base_weight()
        wide = torch.promote_types(frozen.dtype, torch.float32)
        self.lora_A = nn.Parameter(torch.zeros(rank, self.in_features, dtype=wide, device=frozen.device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, dtype=wide, device=frozen.device))
        self.start_A: Tensor | None
        self.start_B: Tensor | None
        self.register_buffer("start_A", None)
        self.register_buffer("start_B", None)
        self.lora_magnitude = nn.Parameter(self._norms()) if dora else None

    @classmethod
    def from_base(
        cls,
        base: nn.Module,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        rslora: bool = False,
        generator: torch.Generator | None = None,
        init: str = "kaiming",
        dora: bool = False,
    ) -> "LoraLinear":
        """A new adapter that changes nothing yet, started as `models/lora_init/` has it under `init`."""
        adapter = cls(base, rank, alpha, dropout, rslora, dora)
        stored = isinstance(base, QuantLinear)
        weight = base.decoded(adapter.lora_A) if stored else adapter._base_weight().detach()
        weight_MK = weight.T if adapter.transposed else weight
        adapter.begin(*load_init(init)(weight_MK, rank, adapter.scale, generator))
        return adapter

    @torch.no_grad()
    def begin(self, a_RK: Tensor, b_MR: Tensor) -> None:
        """Starts from these factors. What they would change is taken off again; where B·A = 0, nothing need be.

        Raises ModelError if they have not the adapter's rank, which may be more than the weight has directions.
        """
        if a_RK.shape != self.lora_A.shape or b_MR.shape != self.lora_B.shape:
            raise ModelError(
                f"lora.init finds {a_RK.shape[0]} directions in a weight of {self.out_features} by "
                f"{self.in_features}, fewer than the rank {self.rank}. Lower lora.rank, or lower it for these modules "
                "in lora.ranks."
            )
        self.lora_A.copy_(a_RK)
        self.lora_B.copy_(b_MR)
        if (b_MR @ a_RK).norm() > 1e-5 * b_MR.norm() * a_RK.norm():
            self.start_A, self.start_B = self.lora_A.detach().clone(), -self.lora_B.detach()
        if self.lora_magnitude is not None:
            self.lora_magnitude.copy_(self._norms())

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of all that is added to the weight, what they started as included; differentiable."""
        if self.start_A is None or self.start_B is None:
            return self.lora_A, self.lora_B
        return torch.cat([self.lora_A, self.start_A]), torch.cat([self.lora_B, self.start_B], 1)

    @property
    def idle(self) -> bool:
        """Whether nothing has been learned: the layer computes what its base does."""
        if self.lora_magnitude is not None and not torch.equal(self.lora_magnitude, self._norms()):
            return False
        if self.start_A is None or self.start_B is None:
            return not bool(self.lora_B.any())
        return torch.equal(self.lora_A, self.start_A) and torch.equal(self.lora_B, -self.start_B)

    @property
    def scale(self) -> float:
        """Factor on the update."""
        return lora_scale(self.rank, self.alpha, self.rslora)

    @property
    def in_features(self) -> int:
        """K, whatever the layout of the weight."""
        return self._shape[0 if self.transposed else 1]

    @property
    def out_features(self) -> int:
        """M, whatever the layout of the weight."""
        return self._shape[1 if self.transposed else 0]

    @property
    def _shape(self) -> tuple[int, ...]:
        return self.base.shape if isinstance(self.base, QuantLinear) else tuple(self._base_weight().shape)

    @property
    def weight(self) -> Tensor:
        """The weight in effect, in the base's layout and dtype; differentiable in A and B."""
        if not self.enabled:
            return self._base_weight()
        return updated(self._base_weight(), self.factors, self.scale, self.transposed, self.lora_magnitude)

    @property
    def bias(self) -> Tensor | None:
        """The base's bias; LoRA does not touch it."""
        return getattr(self.base, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base(x)
        if isinstance(self.base, RoundedLinear):
            return self.base.product(x, self.update())
        a_RK, b_MR = self.factors
        mask = dropout_mask(x, self.dropout) if self.training and self.dropout > 0 else None
        if self._base_is_plain():
            weight = self._base_weight()
            weight_MK = weight.T if self.transposed else weight
            if self.lora_magnitude is None:
                return lora_linear(x, weight_MK, self.bias, a_RK, b_MR, self.scale, mask)
            return self._lengthened(lora_linear(x, weight_MK, None, a_RK, b_MR, self.scale, mask))
        dropped = x if mask is None else x * mask
        low = self.scale * (dropped @ a_RK.to(x.dtype).T)
        y = self.base(x) + low @ b_MR.to(x.dtype).T
        if self.lora_magnitude is None:
            return y
        return self._lengthened(y if self.bias is None else y - self.bias)

    def update(self) -> Update:
        """What is added to the weight, for a base that rounds both together."""
        return Update(*self.factors, self.scale, (self.lora_A, self.lora_B))

    def widened(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input and weight [M, K + R] whose product is the layer's: y = [x | s·drop(x)·Aᵀ] · [W | B]ᵀ."""
        weight = self._base_weight()
        weight_MK, x = (weight.T if self.transposed else weight), x.to(weight.dtype)
        if not self.enabled:
            return x, weight_MK
        a_RK, b_MR = self.factors
        mask = dropout_mask(x, self.dropout) if self.training and self.dropout > 0 else None
        dropped = x if mask is None else x * mask
        low = self.scale * (dropped @ a_RK.to(x.dtype).T)
        wide_weight = torch.cat([weight_MK, b_MR.to(weight.dtype)], 1)
        if self.lora_magnitude is not None:
            wide_weight = (wide_weight * self.gain_M[:, None]).to(weight.dtype)
        return torch.cat([x, low], -1), wide_weight

    def delta_weight(self) -> Tensor:
        """s · B·A in the base's layout and the masters' fp32; DoRA's lengths are no part of it."""
        with torch.no_grad():
            return low_rank_update(*self.factors, self.scale, self.transposed)

    def merge(self) -> nn.Module:
        """Makes the update part of the base's weight, in place and rounded once, and returns the base.

        A stored base becomes a plain layer: the sum has no place on the grid of few bits.
        """
        base = self.base.opened() if isinstance(self.base, QuantLinear) else self.base
        with torch.no_grad():
            weight = base.weight
            assert isinstance(weight, Tensor)
            weight.copy_(updated(weight, self.factors, self.scale, self.transposed, self.lora_magnitude))
        return base

    @property
    def dora(self) -> bool:
        """Whether lengths of their own are trained."""
        return self.lora_magnitude is not None

    @property
    def gain_M(self) -> Tensor:
        """DoRA's factor on each output: m / ‖W + s·B·A‖. Differentiable in m alone."""
        assert self.lora_magnitude is not None, "only with dora"
        return self.lora_magnitude / self._norms()

    def extra_repr(self) -> str:
        kind = f"dropout={self.dropout}, rslora={self.rslora}, dora={self.dora}"
        return f"rank={self.rank}, alpha={self.alpha}, {kind}"

    def _norms(self) -> Tensor:
        """‖W + s·B·A‖ of each output, [M]."""
        weight = self._base_weight().detach()
        return row_norms(weight.T if self.transposed else weight, *self.factors, self.scale)

    def _lengthened(self, y: Tensor) -> Tensor:
        """DoRA's output from that without lengths and bias."""
        y = (y * self.gain_M).to(y.dtype)
        return y if self.bias is None else y + self.bias

    def _base_weight(self) -> Tensor:
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight

    def _base_is_plain(self) -> bool:
        """Whether the base does x·Wᵀ + b and nothing else: no forward of its own, no hooks."""
        base = self.base
        own = type(base).forward not in (nn.Linear.forward, Conv1D.forward) or "forward" in vars(base)
        return not (own or base._forward_hooks or base._forward_pre_hooks)


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
    ranks: Mapping[str, int] | None = None,
    alphas: Mapping[str, float] | None = None,
    layers: str | Sequence[int] | None = None,
    init: str = "kaiming",
    dora: bool = False,
    train_a: bool = True,
) -> LoraReport:
    """Puts new adapters on `model`, in place, and freezes all else. The model computes what it did before.

    `alpha`: twice the rank if absent. `target`: "all" (every linear layer but the head), names, or one
    regular expression for full names. `ranks` and `alphas` of single modules go before `rank` and `alpha`; only the
    decoder `layers` get any; `init` is how they start; without `train_a` A stays as it starts. `modules_to_save` are
    trained whole, and so is every module that shares their weights. The embeddings of `tokens` are part of the
    adapter, trained or not. Raises ModelError where settings do not fit the model or it has adapters already; the
    model is then unchanged.
    """
    refuse_adapted(model)
    saved = match_saved(model, modules_to_save)
    targets = in_layers(match_targets(model, target, saved), layers)
    shapes = settings_of(targets, rank, alpha, ranks or {}, alphas or {})
    holders = token_holders(model, saved, targets) if tokens else []
    made = {
        name: LoraLinear.from_base(
            model.get_submodule(name), own_rank, own_alpha, dropout, rslora, generator, init, dora
        )
        for name, (own_rank, own_alpha) in shapes.items()
    }
    model.requires_grad_(False)
    wrap_whole(model, saved)
    for names in holders:
        wrap_tokens(model, names, tokens).requires_grad_(train_tokens)
    for name, adapter in made.items():
        adapter.lora_A.requires_grad_(train_a)
        put(model, name, adapter)
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
            stored = isinstance(module.base, QuantLinear)
            if not stored and len(owners(model)[id(module.base.weight)]) > 1:
                untie(model, name)
            put(model, name, module.merge())
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


def report(model: nn.Module) -> LoraReport:
    """What the adapters on this model touch."""
    present = adapters(model)
    return LoraReport(
        targets=tuple(name for name, module in present.items() if isinstance(module, LoraLinear)),
        saved=tuple(name for name, module in present.items() if isinstance(module, WholeModule)),
        num_trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
    )
