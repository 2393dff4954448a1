"""A frozen linear layer with a low-rank update, or several of them one around the other.

Shape suffixes: K inputs, M outputs, R rank.
"""

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from luthier.errors import ModelError
from luthier.kernels.dora import row_norms
from luthier.kernels.lora_linear import dropout_mask, lora_linear
from luthier.models.lora_init import load_init
from luthier.models.lora_weight import lora_scale, low_rank_update, updated
from luthier.models.quantised.linear import QuantLinear
from luthier.models.rounded.linear import RoundedLinear, Update


class LoraLinear(nn.Module):
    """A frozen linear layer and its low-rank update: y = base(x) + s · drop(x)·Aᵀ·Bᵀ.

    `lora_A` [R, K] and `lora_B` [M, R] are fp32 masters. If they started as something (`begin`), that is kept beside
    them, never trained, and taken off again: s · (B·A - B₀·A₀); `factors` are both. `weight` is the weight that is in
    effect, update included, so that code which reads it instead of calling the module computes the same function;
    `root.weight` is the frozen one.

    With `dora` (arXiv:2402.09353) every output's row of the weight in effect has the trained length `lora_magnitude`
    [M]: y = m / ‖W + s·B·A‖ ∘ (W·x + s·B·A·drop(x)) + bias.

    `base` may be the update of another adapter (`name`); all of them together are the `chain`. With `lora_bias` the
    layer's bias is trained, as an fp32 master.
    """

    def __init__(
        self,
        base: nn.Module,
        rank: int,
        alpha: float,
        dropout: float = 0.0,
        rslora: bool = False,
        dora: bool = False,
        name: str = "",
    ):
        super().__init__()
        self.base = base if isinstance(base, LoraLinear) else base.requires_grad_(False)
        self.name = name
        self.transposed = isinstance(self.root, Conv1D)
        self.rank, self.alpha, self.dropout, self.rslora = rank, alpha, dropout, rslora
        self.enabled = True
        frozen = self.root if isinstance(self.root, QuantLinear) else self._root_weight()
        wide = torch.promote_types(frozen.dtype, torch.float32)
        self.lora_A = nn.Parameter(torch.zeros(rank, self.in_features, dtype=wide, device=frozen.device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, dtype=wide, device=frozen.device))
        self.start_A: Tensor | None
        self.start_B: Tensor | None
        self.register_buffer("start_A", None)
        self.register_buffer("start_B", None)
        self.lora_magnitude = nn.Parameter(self._norms()) if dora else None
        self.lora_bias: nn.Parameter | None = None
        self.restarts = 0

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
        weight = base.decoded(adapter.lora_A) if stored else adapter._root_weight().detach()
        weight_MK = weight.T if adapter.transposed else weight
        adapter.begin(*load_init(init)(weight_MK, rank, adapter.scale, generator))
        return adapter

    @torch.no_grad()
    def begin(self, a_RK: Tensor, b_MR: Tensor, *, counts: bool = False) -> None:
        """Starts from these factors. What they would change is taken off again, unless it `counts`; where B·A = 0,
        nothing need be.

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
        self.start_A = self.start_B = None
        if not counts and b_MR.any() and (b_MR @ a_RK).norm() > 1e-5 * b_MR.norm() * a_RK.norm():
            self.start_A, self.start_B = self.lora_A.detach().clone(), -self.lora_B.detach()
        if self.lora_magnitude is not None:
            self.lora_magnitude.copy_(self._norms())

    def make_room(self, restarts: int) -> None:
        """Room for what is learned up to each of so many restarts (`take_in`)."""
        assert self.start_A is None and self.lora_magnitude is None, "refused before"
        self.restarts = restarts
        self.start_A = self.lora_A.new_zeros(restarts * self.rank, self.in_features)
        self.start_B = self.lora_B.new_zeros(self.out_features, restarts * self.rank)

    @torch.no_grad()
    def take_in(self, restart: int, a_RK: Tensor) -> None:
        """Makes what is learned a part of what is frozen, and starts anew from `a_RK` and B = 0 (arXiv:2307.05695).

        The layer computes what it did. `restart` counts from 0.
        """
        assert self.start_A is not None and self.start_B is not None, "make_room comes first"
        place = slice(restart * self.rank, (restart + 1) * self.rank)
        self.start_A[place] = self.lora_A
        self.start_B[:, place] = self.lora_B
        self.lora_A.copy_(a_RK)
        self.lora_B.zero_()

    @torch.no_grad()
    def train_bias(self) -> None:
        """Trains the base's bias, if it has one."""
        bias_M = getattr(self.root, "bias", None)
        if isinstance(bias_M, Tensor):
            self.lora_bias = nn.Parameter(bias_M.detach().to(self.lora_A.dtype, copy=True))

    @torch.no_grad()
    def change_rank(self, rank: int) -> None:
        """Another rank with the same factor on the update; A and B are zero."""
        self.alpha *= (rank / self.rank) ** (0.5 if self.rslora else 1.0)
        self.rank = rank
        for name, size in (("lora_A", (rank, self.in_features)), ("lora_B", (self.out_features, rank))):
            old = getattr(self, name)
            setattr(self, name, nn.Parameter(old.new_zeros(size), requires_grad=old.requires_grad))

    @property
    def chain(self) -> list["LoraLinear"]:
        """This adapter and those within it, outside first."""
        found: list[LoraLinear] = [self]
        while isinstance(base := found[-1].base, LoraLinear):
            found.append(base)
        return found

    @property
    def root(self) -> nn.Module:
        """The layer beneath all adapters."""
        return self.chain[-1].base

    @property
    def factors(self) -> tuple[Tensor, Tensor]:
        """A and B of all that is added to the weight, what they started as included; differentiable."""
        if self.start_A is None or self.start_B is None:
            return self.lora_A, self.lora_B
        return torch.cat([self.lora_A, self.start_A]), torch.cat([self.lora_B, self.start_B], 1)

    def all_factors(self, enabled: bool = False) -> tuple[Tensor, Tensor, float]:
        """A, B and the factor on their product for the whole chain, or for those of it that are enabled."""
        chosen = [adapter for adapter in self.chain if adapter.enabled or not enabled]
        if len(chosen) == 1:
            return *chosen[0].factors, chosen[0].scale
        none = self.lora_A[:0], self.lora_B[:, :0]
        pairs = [none, *(adapter.factors for adapter in chosen)]
        scales = [1.0, *(adapter.scale for adapter in chosen)]
        scaled = [b_MR * scale for (_, b_MR), scale in zip(pairs, scales, strict=True)]
        return torch.cat([a_RK for a_RK, _ in pairs]), torch.cat(scaled, 1), 1.0

    @property
    def idle(self) -> bool:
        """Whether nothing has been learned: the layer computes what its base does."""
        if self.lora_magnitude is not None and not torch.equal(self.lora_magnitude, self._norms()):
            return False
        if self.lora_bias is not None and not torch.equal(
            self.lora_bias, self._root_bias().to(self.lora_bias)
        ):
            return False
        if self.start_A is None or self.start_B is None:
            return not bool(self.lora_B.any())
        if not self.start_B.any():
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
        return self.root.shape if isinstance(self.root, QuantLinear) else tuple(self._root_weight().shape)

    @property
    def weight(self) -> Tensor:
        """The weight in effect, in the base's layout and dtype; differentiable in A and B."""
        if not any(adapter.enabled for adapter in self.chain):
            return self._root_weight()
        a_RK, b_MR, scale = self.all_factors(enabled=True)
        magnitude_M = self.lora_magnitude if self.enabled else None
        return updated(self._root_weight(), (a_RK, b_MR), scale, self.transposed, magnitude_M)

    @property
    def bias(self) -> Tensor | None:
        """The bias in effect, in the base's dtype."""
        if self.lora_bias is not None and self.enabled:
            return self.lora_bias.to(self._root_bias().dtype)
        return getattr(self.base, "bias", None)

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.base(x)
        if isinstance(self.base, RoundedLinear):
            return self.base.product(x, self.update())
        a_RK, b_MR = self.factors
        mask = dropout_mask(x, self.dropout) if self.training and self.dropout > 0 else None
        if self._base_is_plain():
            weight = self._root_weight()
            weight_MK = weight.T if self.transposed else weight
            if self.lora_magnitude is None:
                return lora_linear(x, weight_MK, self.bias, a_RK, b_MR, self.scale, mask)
            return self._lengthened(lora_linear(x, weight_MK, None, a_RK, b_MR, self.scale, mask))
        dropped = x if mask is None else x * mask
        low = self.scale * (dropped @ a_RK.to(x.dtype).T)
        y = self.base(x) + low @ b_MR.to(x.dtype).T
        if self.lora_magnitude is not None:
            before = getattr(self.base, "bias", None)
            return self._lengthened(y if before is None else y - before)
        return y if self.lora_bias is None else y + (self.lora_bias - self._root_bias()).to(y.dtype)

    def update(self) -> Update:
        """What is added to the weight, for a base that rounds both together."""
        return Update(*self.factors, self.scale, (self.lora_A, self.lora_B))

    def widened(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input and weight [M, K + R] whose product is the layer's: y = [x | s·drop(x)·Aᵀ] · [W | B]ᵀ."""
        weight = self._root_weight()
        weight_MK, x = (weight.T if self.transposed else weight), x.to(weight.dtype)
        chosen = [adapter for adapter in self.chain if adapter.enabled]
        lows = []
        for adapter in chosen:
            mask = dropout_mask(x, adapter.dropout) if adapter.training and adapter.dropout > 0 else None
            dropped = x if mask is None else x * mask
            lows.append(adapter.scale * (dropped @ adapter.factors[0].to(x.dtype).T))
        if not chosen:
            return x, weight_MK
        wide_weight = torch.cat([weight_MK, *(adapter.factors[1].to(weight.dtype) for adapter in chosen)], 1)
        if self.lora_magnitude is not None and self.enabled:
            wide_weight = (wide_weight * self.gain_M[:, None]).to(weight.dtype)
        return torch.cat([x, *lows], -1), wide_weight

    def delta_weight(self) -> Tensor:
        """s · B·A in the base's layout and the masters' fp32; DoRA's lengths are no part of it."""
        with torch.no_grad():
            return low_rank_update(*self.factors, self.scale, self.transposed)

    def merge(self) -> nn.Module:
        """Makes the updates of the chain part of the weight beneath, in place and rounded once, and returns that layer.

        A stored base becomes a plain layer: the sum has no place on the grid of few bits.
        """
        base = self.root.opened() if isinstance(self.root, QuantLinear) else self.root
        with torch.no_grad():
            weight = base.weight
            assert isinstance(weight, Tensor)
            a_RK, b_MR, scale = self.all_factors()
            weight.copy_(updated(weight, (a_RK, b_MR), scale, self.transposed, self.lora_magnitude))
            if self.lora_bias is not None:
                self._root_bias().copy_(self.lora_bias)
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
        return f"rank={self.rank}, alpha={self.alpha}, {kind}" + (f", name={self.name}" if self.name else "")

    def _norms(self) -> Tensor:
        """‖W + s·B·A‖ of each output, [M]."""
        weight = self._root_weight().detach()
        return row_norms(weight.T if self.transposed else weight, *self.all_factors())

    def _lengthened(self, y: Tensor) -> Tensor:
        """DoRA's output from that without lengths and bias."""
        y = (y * self.gain_M).to(y.dtype)
        return y if self.bias is None else y + self.bias

    def _root_weight(self) -> Tensor:
        weight = self.root.weight
        assert isinstance(weight, Tensor)
        return weight

    def _root_bias(self) -> Tensor:
        bias_M = self.root.bias
        assert isinstance(bias_M, Tensor), "there is one where it is trained"
        return bias_M

    def _base_is_plain(self) -> bool:
        """Whether the base does x·Wᵀ + b and nothing else: no forward of its own, no hooks."""
        base = self.base
        own = type(base).forward not in (nn.Linear.forward, Conv1D.forward) or "forward" in vars(base)
        return not (own or base._forward_hooks or base._forward_pre_hooks)
