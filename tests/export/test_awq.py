"""AWQ: scales move between a layer and what is before it without a change, and lose less on the rows than none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gguf_models import saved
from luthier.errors import ModelError
from luthier.export.compressed.awq import GRID, best_scale, by_awq, fold, pairs_of, scale_layer
from luthier.export.compressed.gptq import hessians
from luthier.export.compressed.layers import layers_on, linear_inside
from luthier.export.compressed.types import TYPES, Type
from luthier.export.compressed.write import write_compressed
from luthier.models.load import load_model
from luthier.models.quantised.packed import packed_model
from luthier.models.regional import decoder_layers
from tiny_models import build

KINDS = [
    "llama",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "phi3",
    "olmo2",
    "qwen3_moe",
    "granite",
    "smollm3",
]
PAIRS = {"olmo2": 2, "qwen3_moe": 2}
"""Of a layer: OLMo 2 has no norm before its halves, and experts are left alone; of all others 4."""
ROWS = [[3 + (7 * row + token * token) % 90 for token in range(20 + row)] for row in range(12)]


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ROWS[3]])).logits


@pytest.mark.parametrize("kind", KINDS)
def test_folding_changes_nothing(kind: str) -> None:
    """In fp64 but for what transformers always computes in fp32 (Gemma's norms) or knows no fp64 for (experts); every
    scale is another number, and a wrong channel, head or offset is an error of the logits' own size."""
    single = kind in ("gemma2", "gemma3_text", "qwen3_moe")
    model = build(kind) if kind == "qwen3_moe" else build(kind).double()
    before, changed = logits(model), 0
    torch.manual_seed(1)
    for layer in decoder_layers(model):
        pairs = pairs_of(layer)
        assert len(pairs) == PAIRS.get(kind, 4)
        for pair in pairs:
            old = [layer.get_submodule(name).weight.clone() for name in pair.readers]  # pyright: ignore[reportCallIssue]
            fold(layer, pair, torch.rand(int(pair.source_K.max()) + 1).double() * 3 + 0.2, torch.float64)
            changed += sum(
                not torch.equal(a, layer.get_submodule(name).weight)  # pyright: ignore[reportArgumentType]
                for a, name in zip(old, pair.readers, strict=True)
            )
    assert changed > 0
    off = (logits(model) - before).abs().max() / before.abs().max()
    assert off < (64 * torch.finfo(torch.float32).eps if single else 1e-12)


def test_powers_of_two_change_no_bit() -> None:
    model = build("llama")
    before = logits(model)
    torch.manual_seed(1)
    for layer in decoder_layers(model):
        for pair in pairs_of(layer):
            size = int(pair.source_K.max()) + 1
            fold(layer, pair, 2.0 ** torch.randint(-3, 4, (size,)))
    assert torch.equal(logits(model), before)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_what_a_norm_rounds_is_made_up_for(kind: str) -> None:
    """The norm's weight is stored in bfloat16; the columns take what that makes of the scale."""
    model = build(kind).double()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(weight.to(torch.bfloat16))
    before = logits(model)
    torch.manual_seed(1)
    for layer in decoder_layers(model):
        for pair in pairs_of(layer):
            fold(layer, pair, torch.rand(int(pair.source_K.max()) + 1).double() * 3 + 0.2, torch.bfloat16)
            if pair.offset is not None:
                weight: Any = layer.get_submodule(pair.writer).weight
                assert torch.equal(weight, weight.to(torch.bfloat16).double())
    torch.testing.assert_close(logits(model), before, rtol=1e-5, atol=1e-6)


def test_the_best_of_the_grid_is_taken() -> None:
    """Each α by itself, from the outputs on the tokens instead of from sums of products."""
    torch.manual_seed(0)
    chosen, source_K = Type(4, group=16), torch.arange(64) % 32
    x_TK = torch.randn(300, 64) * torch.logspace(-1.5, 1.5, 32)[source_K]
    weights = [torch.randn(8, 64), torch.randn(24, 64)]
    found = best_scale(weights, x_TK.T @ x_TK, source_K, chosen, torch.bfloat16)
    size_W = x_TK.square().sum(0).view(2, 32).sum(0).sqrt()

    def scale(power: float) -> Tensor:
        return size_W**power / (size_W.max() ** power * size_W.min() ** power) ** 0.5

    def lost(scale_W: Tensor) -> float:
        scale_K = scale_W[source_K]
        outputs = (
            (x_TK / scale_K) @ chosen.decoded(w * scale_K, torch.bfloat16).T - x_TK @ w.T for w in weights
        )
        return sum(float(out.square().sum()) for out in outputs)

    errors = {power: lost(scale(power)) for power in GRID}
    best = min(errors, key=lambda power: errors[power])
    torch.testing.assert_close(found, scale(best))
    assert 0 < best < 1 and errors[best] < 0.9 * errors[0.0]


def test_what_is_written_is_what_was_meant_and_errs_less(tmp_path: Path) -> None:
    saved("qwen3", tmp_path / "model", hidden_size=64, intermediate_size=160, head_dim=16)
    (tmp_path / "out").mkdir()
    made: list[Any] = []

    def make(folder: Path, chosen: Type, dtype: torch.dtype, linear: Any) -> Any:
        made.append(by_awq(folder, chosen, dtype, linear, ROWS))
        return made[0]

    assert write_compressed(tmp_path / "model", tmp_path / "out", "int4", make=make) == []
    packed = packed_model(tmp_path / "out")
    assert packed is not None and packed.weights.keys() == made[0].parts.keys()
    for name, parts in made[0].parts.items():
        assert all(torch.equal(packed.weights[name][part][...], tensor) for part, tensor in parts.items())
    assert len(made[0].plain) == 4 and all("layernorm" in name for name in made[0].plain)
    for name, tensor in made[0].plain.items():
        assert (
            torch.equal(packed.plain[name][...], tensor.to(torch.bfloat16)) and tensor.dtype == torch.float32
        )
    walked = load_model(tmp_path / "model", torch.float32, torch.device("cpu")).requires_grad_(False)
    chosen, better, pairs = Type(4, group=32), 0, 0
    for layer in layers_on(walked, ROWS):
        inside = linear_inside(layer, packed.weights.keys())
        sums = hessians(layer, inside)
        old = {name: layer.module.get_submodule(name).weight.detach().clone() for name in inside}  # pyright: ignore[reportCallIssue]
        for pair, scale_W in scale_layer(layer.module, sums, chosen, torch.bfloat16):
            scale_K, ours, plain = scale_W[pair.source_K], 0.0, 0.0
            for name in pair.readers:
                off = chosen.decoded(old[name] * scale_K, torch.bfloat16) / scale_K - old[name]
                ours += float(((off @ sums[name]) * off).sum())
                off = chosen.decoded(old[name], torch.bfloat16) - old[name]
                plain += float(((off @ sums[name]) * off).sum())
            assert ours <= plain
            better, pairs = better + (ours < 0.99 * plain), pairs + 1
        for name in inside:
            decoded = packed.decoded(f"{layer.name}.{name}", torch.float32)
            layer.module.get_submodule(name).weight.data.copy_(decoded)  # pyright: ignore[reportCallIssue]
    assert pairs == 8 and better >= 4


def test_layers_that_nobody_described_are_refused() -> None:
    model = build("llama")

    class NewLayer(nn.Module):
        pass

    with pytest.raises(ModelError, match=r"a NewLayer is not described in models/families\. Take gptq"):
        pairs_of(NewLayer())
    layer = decoder_layers(model)[0]
    assert not list(
        scale_layer(layer, {}, TYPES["int4"], torch.bfloat16)
    )  # nothing is stored, so nothing moves
