"""AWQ: columns that are multiplied with large inputs are stored larger, so that rounding costs them less, and whatever
makes these inputs makes them smaller by the same.

    y = W·x = (W·diag(s))·(x / s)        s = (mean x²)^(α/2) for each input, α the best of a grid

(Lin et al. 2023, arXiv:2306.00978.) What makes the inputs is the norm before a half of the layer, the values of
attention, or the up projection; it is divided by s, so the model computes the same until its weights are rounded. The
best α gives the smallest error of the outputs on the rows, tr((W - Q)·H·(W - Q)ᵀ) as in `gptq.py`; with α = 0 it is
rounding to the nearest.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from luthier.errors import ModelError
from luthier.export.compressed.gptq import hessians
from luthier.export.compressed.layers import Layer, Progress, layers_on, linear_inside
from luthier.export.compressed.types import Type
from luthier.export.compressed.write import Made
from luthier.models.families._common import describers
from luthier.models.fused.parts import Attention, Mlp, Norm
from luthier.models.load import load_model

GRID = tuple(step / 20 for step in range(21))


@dataclass(frozen=True)
class Pair:
    """What makes the inputs of some linear layers, and these; modules by their paths in the decoder layer."""

    writer: str
    readers: tuple[str, ...]
    rows: slice
    """The writer's outputs that are read."""
    source_K: Tensor
    """Which of these outputs each input is; several inputs may be one output."""
    offset: float | None = None
    """Of a norm; None: the writer is a linear layer."""


def pairs_of(layer: nn.Module) -> list[Pair]:
    """Those of a decoder layer. Raises ModelError for a layer that no file in models/families describes."""
    describe = describers().get(type(layer).__name__)
    if describe is None:
        raise ModelError(
            f"awq must know what stands before each linear layer, and a {type(layer).__name__} is not described in "
            "models/families. Take gptq, which does not."
        )
    parts = describe(layer)
    found = list(_of_attention(layer, parts.attention))
    return [*found, *_of_mlp(layer, parts.mlp)] if isinstance(parts.mlp, Mlp) else found


def _behind(layer: nn.Module, norm: Norm, readers: tuple[str, ...]) -> Pair:
    weight: Any = layer.get_submodule(norm.name).weight
    return Pair(norm.name, readers, slice(None), torch.arange(len(weight)), norm.offset)


def _of_attention(layer: nn.Module, told: Attention) -> Iterator[Pair]:
    if told.pre_norm is not None:
        yield _behind(layer, told.pre_norm, told.projections)
    size, shared = told.head_size, told.num_heads // told.num_key_heads
    values = told.num_key_heads * size
    output: Any = layer.get_submodule(told.output)
    inputs = torch.arange(output.in_features)
    source_K = inputs // (size * shared) * size + inputs % size
    yield Pair(told.projections[-1], (told.output,), slice(-values, None), source_K)


def _of_mlp(layer: nn.Module, told: Mlp) -> Iterator[Pair]:
    if told.pre_norm is not None:
        yield _behind(layer, told.pre_norm, told.projections)
    output: Any = layer.get_submodule(told.output)
    inputs = output.in_features
    yield Pair(told.projections[-1], (told.output,), slice(-inputs, None), torch.arange(inputs))


@torch.no_grad()
def fold(layer: nn.Module, pair: Pair, scale_W: Tensor, dtype: torch.dtype = torch.float32) -> None:
    """Divides what the writer makes by `scale_W` and multiplies the readers' columns, in place.

    A norm's weight is rounded to `dtype`, and the columns take what that makes of the scale.
    """
    writer: Any = layer.get_submodule(pair.writer)
    if pair.offset is None:
        writer.weight[pair.rows] /= scale_W[:, None]
        if writer.bias is not None:
            writer.bias[pair.rows] /= scale_W
    else:
        before = writer.weight + pair.offset
        after = (before / scale_W - pair.offset).to(dtype).to(before.dtype)
        fine = (before != 0) & (after + pair.offset != 0)
        scale_W = torch.where(fine, before / (after + pair.offset), 1.0)
        writer.weight.copy_(torch.where(fine, after, writer.weight))
        if getattr(writer, "bias", None) is not None:
            writer.bias /= scale_W
    for name in pair.readers:
        reader: Any = layer.get_submodule(name)
        reader.weight *= scale_W[pair.source_K]


def best_scale(
    weights: Sequence[Tensor], hessian_KK: Tensor, source_K: Tensor, chosen: Type, dtype: torch.dtype
) -> Tensor:
    """The scale [W] of the outputs that these weights [M, K] read, with the smallest error after rounding.

    Args:
        hessian_KK: Σ over tokens of x·xᵀ of what they read.
        source_K: which output each input is.
    """
    num = int(source_K.max()) + 1
    squares_W = torch.zeros(num).index_add_(0, source_K, hessian_KK.diagonal())
    size_W = squares_W.clamp(min=squares_W.max() * 1e-12).sqrt()
    best: tuple[float, Tensor] | None = None
    for power in GRID:
        scale_W = size_W**power
        scale_W = scale_W / (scale_W.max() * scale_W.min()).sqrt()
        lost = 0.0
        for weight_MK in weights:
            scaled_MK = weight_MK * scale_W[source_K]
            off_MK = (chosen.decoded(scaled_MK, dtype) - scaled_MK) / scale_W[source_K]
            lost += float(((off_MK @ hessian_KK) * off_MK).sum())
        if best is None or lost < best[0]:
            best = lost, scale_W
    assert best is not None
    return best[1]


@torch.no_grad()
def scale_layer(
    layer: nn.Module, sums: Mapping[str, Tensor], chosen: Type, dtype: torch.dtype
) -> Iterator[tuple[Pair, Tensor]]:
    """Folds the best scales into a decoder layer, and tells each pair with what it was divided by.

    Pairs of which a reader is not in `sums`, because it is not stored in few bits or nothing reaches it, stay.
    """
    found = []
    for pair in pairs_of(layer):
        if all(name in sums for name in pair.readers):
            weights = [layer.get_submodule(name).weight for name in pair.readers]
            found.append((pair, best_scale(weights, sums[pair.readers[0]], pair.source_K, chosen, dtype)))  # pyright: ignore[reportArgumentType]
    for pair, scale_W in found:
        fold(layer, pair, scale_W, dtype)
        yield pair, scale_W


@torch.no_grad()
def by_awq(
    folder: Path,
    chosen: Type,
    dtype: torch.dtype,
    linear: Collection[str],
    rows: Sequence[Sequence[int]],
    progress: Progress | None = None,
) -> Made:
    """The linear layers, scaled and rounded to the nearest, and the norms and biases that took the scales.

    Args: `write.Maker`'s, tokens of rows of data, and what is told after each layer.

    Raises ModelError if the model's layers cannot be taken one by one, or are not described.
    """
    model = load_model(folder, torch.float32, torch.device("cpu"))
    parts: dict[str, dict[str, Tensor]] = {}
    plain: dict[str, Tensor] = {}
    for layer in layers_on(model, rows, progress):
        inside = linear_inside(layer, linear)
        for pair, _ in scale_layer(layer.module, hessians(layer, inside), chosen, dtype):
            plain |= _written(layer, pair, inside)
        for name in inside:
            module: Any = layer.module.get_submodule(name)
            parts[f"{layer.name}.{name}"] = chosen.nearest(module.weight, dtype)
            module.weight.copy_(chosen.decoded(module.weight, dtype))
    return Made(parts, plain)


def _written(layer: Layer, pair: Pair, stored: Collection[str]) -> dict[str, Tensor]:
    """What folding changed of the writer and is not stored in few bits, by name in the model."""
    kept = layer.module.get_submodule(pair.writer).named_parameters()
    return {
        f"{layer.name}.{pair.writer}.{name}": tensor.detach()
        for name, tensor in kept
        if name != "weight" or pair.writer not in stored
    }
