"""Linear layers that read the same input, with their low-rank updates, as one matrix product.

For one layer with an adapter (LoRA, arXiv:2106.09685)

    y = x·Wᵀ + (x·(s·A)ᵀ)·Bᵀ = [x | low]·[W | B]ᵀ        low = x·(s·A)ᵀ

so if W lies in a buffer whose tail columns hold B, and x in one with R spare columns for `low`, the update costs
no pass over y: the product is R columns deeper. Backward likewise, with s·A in the tail rows:

    dx = [dy | dlow]·[W ; s·A]                               dlow = dy·B

Several layers (query, key and value; gate and up) are stacked in one buffer, each adapter in columns of its own:

    W₁ B₁ 0
    W₂ 0  B₂
    s₁A₁
    s₂A₂

Shape suffixes: T tokens, K inputs, M outputs of all layers, R ranks of all adapters; `wide` buffers have R more
columns than their name says.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, product

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.kernels.quant.base import Stored


@dataclass(frozen=True)
class LowRank:
    """The update s·B·A of a layer's weight. A [R, K] and B [M, R] are masters in at least fp32.

    With `start`, two further factors A₀ and B₀ of the same shapes that are never trained: s·(B·A + B₀·A₀).
    """

    a_RK: Tensor
    b_MR: Tensor
    scale: float
    start: tuple[Tensor, Tensor] | None = None
    magnitude_M: Tensor | None = None
    """Trained lengths of the outputs' rows; only `lengths.py` reads them."""

    @property
    def all_a(self) -> list[Tensor]:
        """A, and A₀ if there is one."""
        return [self.a_RK] if self.start is None else [self.a_RK, self.start[0]]

    @property
    def all_b(self) -> list[Tensor]:
        """B, and B₀ if there is one."""
        return [self.b_MR] if self.start is None else [self.b_MR, self.start[1]]

    @property
    def columns(self) -> int:
        """How many columns it takes in the tails."""
        return sum(len(a_RK) for a_RK in self.all_a)


@dataclass(frozen=True)
class Linear:
    """One of the layers: y = x·Wᵀ + bias, and perhaps updates. A trained bias may be a wider master."""

    weight_MK: Tensor | Stored
    bias_M: Tensor | None = None
    update: LowRank | None = None
    further: tuple[LowRank, ...] = ()
    """Updates of further adapters, added up."""

    @property
    def updates(self) -> tuple[LowRank, ...]:
        """All of them."""
        return self.further if self.update is None else (self.update, *self.further)

    @property
    def trained(self) -> list[Tensor]:
        """What has gradients besides the weight: A and B of each update, then the bias."""
        masters = [t for update in self.updates for t in (update.a_RK, update.b_MR)]
        return [t for t in (*masters, self.bias_M) if t is not None and t.requires_grad]


def reference(
    x_TK: Tensor, layers: Sequence[Linear], mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """The definition: each layer alone, its update apart. Returns [T, M], the outputs side by side."""
    outputs = []
    dropped_TK = x_TK if mask is None else x_TK * mask / (1 - dropout)
    for layer in layers:
        weight_MK = layer.weight_MK.weight() if isinstance(layer.weight_MK, Stored) else layer.weight_MK
        y = F.linear(x_TK, weight_MK, None if layer.bias_M is None else layer.bias_M.to(x_TK.dtype))
        for update in layer.updates:
            for a_RK, b_MR in zip(update.all_a, update.all_b, strict=True):
                low = update.scale * F.linear(dropped_TK, a_RK.to(x_TK.dtype))
                y = y + F.linear(low, b_MR.to(x_TK.dtype))
        outputs.append(y)
    return torch.cat(outputs, -1)


class Linears:
    """What both kinds below offer.

    `parameters` are the tensors that `parameter_gradients` answers for, in this order. `spare` is R, the number
    of columns that the buffers of x and dy must have beyond K and M.
    """

    layers: list[Linear]
    num_in: int
    num_out: int
    spare: int = 0
    parameters: list[Tensor]
    dropout: float = 0.0
    """Share of the updates' inputs that are dropped while `training()`; one mask for all layers."""

    @staticmethod
    def training() -> bool:
        """Whether inputs are dropped now; whoever builds the group says how that is known."""
        return False

    def draw_mask(self, like: Tensor) -> Tensor | None:
        """Which inputs of the updates stay in one pass over the tokens of `like`, [T, K]; None: all."""
        if not (self.dropout and self.spare and self.training()):
            return None
        size = len(like), self.num_in
        return torch.empty(size, dtype=torch.bool, device=like.device).bernoulli_(1 - self.dropout)

    def forward(
        self, wide_x: Tensor, out_TM: Tensor, *, add_to: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Writes x·Wᵀ + bias (+ `add_to`) into `out_TM` and returns it; fills the spare columns of `wide_x`.

        `mask` is what `draw_mask` gave; the gradients need the same.
        """
        raise NotImplementedError

    def input_gradient(self, wide_grad: Tensor, grad_x: Tensor | None, mask: Tensor | None = None) -> None:
        """Fills the spare columns of `wide_grad`, and writes the gradient of x into `grad_x` if given."""
        raise NotImplementedError

    def parameter_gradients(
        self, wide_grad: Tensor, wide_x: Tensor, made: Tensor | None = None, mask: Tensor | None = None
    ) -> list[Tensor]:
        """The gradients of `parameters`, from both buffers with their spare columns filled.

        `made` is what `forward` wrote without `add_to`, where it is still there; it may save making it again.
        """
        raise NotImplementedError

    def refresh(self) -> None:
        """Follows the weights; called before every pass."""

    def unpack(self) -> None:
        """Gives the layers' weights storage of their own again."""


class SeparateLinears(Linears):
    """Layers without updates, their weights left where they are: for training whole weights."""

    def __init__(self, layers: Sequence[Linear]):
        assert not any(layer.updates for layer in layers)
        self.layers = list(layers)
        self.num_in = layers[0].weight_MK.shape[1]
        self.num_out = sum(layer.weight_MK.shape[0] for layer in layers)
        tensors = [t for layer in layers for t in (_tensor(layer), layer.bias_M) if t is not None]
        self.parameters = [tensor for tensor in tensors if tensor.requires_grad]

    def forward(
        self, wide_x: Tensor, out_TM: Tensor, *, add_to: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        for layer, columns in self._slices():
            part = None if add_to is None else add_to[:, columns]
            _product(wide_x, _tensor(layer), layer.bias_M, part, out_TM[:, columns])
        return out_TM

    def input_gradient(self, wide_grad: Tensor, grad_x: Tensor | None, mask: Tensor | None = None) -> None:
        if grad_x is None:
            return
        for number, (layer, columns) in enumerate(self._slices()):
            if number == 0:
                torch.mm(wide_grad[:, columns], _tensor(layer), out=grad_x)
            else:
                grad_x.addmm_(wide_grad[:, columns], _tensor(layer))

    def parameter_gradients(
        self, wide_grad: Tensor, wide_x: Tensor, made: Tensor | None = None, mask: Tensor | None = None
    ) -> list[Tensor]:
        gradients = []
        for layer, columns in self._slices():
            grad = wide_grad[:, columns]
            if layer.weight_MK.requires_grad:
                gradients.append(grad.T @ wide_x)
            if layer.bias_M is not None and layer.bias_M.requires_grad:
                gradients.append(grad.sum(0, dtype=_wide(grad)).to(layer.bias_M.dtype))
        return gradients

    def _slices(self) -> list[tuple[Linear, slice]]:
        ends = list(accumulate(layer.weight_MK.shape[0] for layer in self.layers))
        return [
            (layer, slice(end - layer.weight_MK.shape[0], end))
            for layer, end in zip(self.layers, ends, strict=True)
        ]


class PackedLinears(Linears):
    """Frozen layers in one buffer, their updates in its tails.

    The buffer becomes the storage of the layers' weights (`weight.data` is a view of it), so nothing is held
    twice. Call `refresh` before `forward`. Where a weight is stored in few bits: decoded_linears.py.
    """

    def __init__(self, layers: Sequence[Linear]):
        assert not any(layer.weight_MK.requires_grad for layer in layers)
        self.layers = list(layers)
        self.num_in = layers[0].weight_MK.shape[1]
        self.outs = _ranges([layer.weight_MK.shape[0] for layer in layers])
        self.lows = _ranges([sum(update.columns for update in layer.updates) for layer in layers])
        self.num_out, self.spare = self.outs[-1].stop, self.lows[-1].stop
        self.parameters = [tensor for layer in layers for tensor in layer.trained]
        self.bias_M = stacked_biases(layers)
        self._pack()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copies the masters into the tails, and takes weights back in that were moved or replaced.

        Done before every pass: version counters would not tell of updates made through another view.
        """
        if any(_tensor(layer).data_ptr() != home.data_ptr() for layer, home in self._homes(self.buffer)):
            self._pack()
        self._copy_masters(self.buffer)
        self._follow_biases()

    def _follow_biases(self) -> None:
        if any(layer.bias_M is not None and layer.bias_M.requires_grad for layer in self.layers):
            self.bias_M = stacked_biases(self.layers)

    def _copy_masters(self, buffer: Tensor) -> None:
        """Writes s·A into the tail rows and B into the tail columns."""
        tails_of_a, tails_of_b, scaled_a, masters_of_b = [], [], [], []
        for layer, outs, lows in zip(self.layers, self.outs, self.lows, strict=True):
            if layer.updates:
                sizes = [len(a_RK) for update in layer.updates for a_RK in update.all_a]
                tails_of_a += self._scaled_a(buffer)[lows].split(sizes)
                tails_of_b += buffer[outs, self.num_in :][:, lows].split(sizes, 1)
                scaled_a += [a_RK * update.scale for update in layer.updates for a_RK in update.all_a]
                masters_of_b += [b_MR for update in layer.updates for b_MR in update.all_b]
        if scaled_a:
            torch._foreach_copy_(tails_of_a + tails_of_b, scaled_a + masters_of_b)  # pyright: ignore[reportPrivateImportUsage]

    def forward(
        self, wide_x: Tensor, out_TM: Tensor, *, add_to: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        buffer = self._filled()
        if self.spare:
            torch.mm(self._stays(wide_x, mask), self._scaled_a(buffer).T, out=wide_x[:, self.num_in :])
            if mask is not None:
                wide_x[:, self.num_in :].div_(1 - self.dropout)
        return _product(wide_x, buffer[: self.num_out], self.bias_M, add_to, out_TM)

    def input_gradient(self, wide_grad: Tensor, grad_x: Tensor | None, mask: Tensor | None = None) -> None:
        buffer = self._filled()
        if self.spare:
            b_MR = buffer[: self.num_out, self.num_in :]
            torch.mm(wide_grad[:, : self.num_out], b_MR, out=wide_grad[:, self.num_out :])
        if mask is not None:
            wide_grad[:, self.num_out :].div_(1 - self.dropout)
            if grad_x is not None:
                torch.mm(wide_grad[:, : self.num_out], buffer[: self.num_out, : self.num_in], out=grad_x)
                grad_x.add_((wide_grad[:, self.num_out :] @ self._scaled_a(buffer)).mul_(mask))
        elif grad_x is not None:
            torch.mm(wide_grad, buffer[:, : self.num_in], out=grad_x)

    def parameter_gradients(
        self, wide_grad: Tensor, wide_x: Tensor, made: Tensor | None = None, mask: Tensor | None = None
    ) -> list[Tensor]:
        lows = [low for low, update in self._updates() if update.a_RK.requires_grad]
        grads_a: Iterable[Tensor] = ()
        if lows:
            sizes, tails_TR = [low.stop - low.start for low in lows], wide_grad[:, self.num_out :]
            if sum(sizes) < self.spare:  # what is frozen needs none
                tails_TR = torch.cat([tails_TR[:, low] for low in lows], 1)
            grads_a = (tails_TR.T @ self._stays(wide_x, mask)).split(sizes)
        of_a, updates, low_TR = iter(grads_a), self._updates(), wide_x[:, self.num_in :]
        gradients = []
        for layer, outs in zip(self.layers, self.outs, strict=True):
            for _ in layer.updates:
                low, update = next(updates)
                if update.a_RK.requires_grad:
                    gradients.append(next(of_a).to(update.a_RK.dtype) * update.scale)
                if update.b_MR.requires_grad:
                    gradients.append((wide_grad[:, outs].T @ low_TR[:, low]).to(update.b_MR.dtype))
            if layer.bias_M is not None and layer.bias_M.requires_grad:
                gradients.append(wide_grad[:, outs].sum(0, dtype=_wide(wide_grad)).to(layer.bias_M.dtype))
        return gradients

    def _updates(self) -> Iterator[tuple[slice, LowRank]]:
        """Each update, layer by layer, and the columns in the tails that its A and B have; those of a start follow."""
        for layer, lows in zip(self.layers, self.lows, strict=True):
            first = lows.start
            for update in layer.updates:
                yield slice(first, first + len(update.a_RK)), update
                first += update.columns

    def unpack(self) -> None:
        """Gives the layers' weights storage of their own again."""
        for layer in self.layers:
            _tensor(layer).data = _tensor(layer).data.contiguous()

    def _filled(self) -> Tensor:
        """The buffer with weights and updates in it."""
        return self.buffer

    def _pack(self) -> None:
        first = _tensor(self.layers[0])
        self.buffer = first.new_zeros(self.num_out + self.spare, self.num_in + self.spare)
        for layer, home in self._homes(self.buffer):
            home.copy_(_tensor(layer).detach())
            _tensor(layer).data = home

    def _homes(self, buffer: Tensor) -> list[tuple[Linear, Tensor]]:
        return [
            (layer, buffer[outs, : self.num_in]) for layer, outs in zip(self.layers, self.outs, strict=True)
        ]

    def _stays(self, wide_x: Tensor, mask: Tensor | None) -> Tensor:
        """The inputs of the updates, not yet divided by the share that stays."""
        x_TK = wide_x[:, : self.num_in]
        return x_TK if mask is None else x_TK * mask

    def _scaled_a(self, buffer: Tensor) -> Tensor:
        return buffer[self.num_out :, : self.num_in]


def stacked_biases(layers: Sequence[Linear]) -> Tensor | None:
    """The biases of the layers one after the other, in the weights' dtype; None where no layer has one."""
    if all(layer.bias_M is None for layer in layers):
        return None
    parts = [
        torch.zeros(layer.weight_MK.shape[0], dtype=layer.weight_MK.dtype, device=layer.weight_MK.device)
        if layer.bias_M is None
        else layer.bias_M.detach().to(layer.weight_MK.dtype)
        for layer in layers
    ]
    return torch.cat(parts)


def _ranges(sizes: Sequence[int]) -> list[slice]:
    return [slice(end - size, end) for size, end in zip(sizes, accumulate(sizes), strict=True)]


def _tensor(layer: Linear) -> Tensor:
    """The weight of a layer that is not stored in few bits."""
    assert isinstance(layer.weight_MK, Tensor)
    return layer.weight_MK


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _product(
    x: Tensor, weight_MK: Tensor, bias_M: Tensor | None, add_to: Tensor | None, out_TM: Tensor
) -> Tensor:
    """x·Wᵀ + bias + add_to into `out_TM`, the additions inside the product."""
    added = add_to if add_to is not None else bias_M
    if added is None:
        return torch.mm(x, weight_MK.T, out=out_TM)
    torch.addmm(added, x, weight_MK.T, out=out_TM)
    return out_TM if add_to is None or bias_M is None else out_TM.add_(bias_M)


def cases(dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, list[Linear]]]:
    """Small inputs: one layer and several, with and without biases, updates on all, on some, on none; no tokens."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int, of: torch.dtype = dtype) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(of)

    def layer(num_in: int, num_out: int, rank: int, biased: bool) -> Linear:
        masters = torch.promote_types(dtype, torch.float32)
        update = (
            LowRank(normal(rank, num_in, of=masters), normal(num_out, rank, of=masters), 1.5 / rank)
            if rank
            else None
        )
        return Linear(normal(num_out, num_in), normal(num_out) if biased else None, update)

    every = product((7, 0), ((5,), (4, 2, 3)), ((0, 0, 0), (2, 2, 2), (0, 3, 1)), (False, True))
    return [
        (
            normal(num_tokens, 6),
            [layer(6, num_out, rank, biased) for num_out, rank in zip(outs, ranks, strict=False)],
        )
        for num_tokens, outs, ranks, biased in every
    ]
