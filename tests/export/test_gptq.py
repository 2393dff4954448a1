"""GPTQ: its codes are those of the dense formulation, and layers err less on the rows than with the nearest codes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from gguf_models import saved
from luthier.errors import ModelError
from luthier.export.compressed.gptq import DAMPING, by_gptq, gptq_codes, hessians
from luthier.export.compressed.layers import layers_on
from luthier.export.compressed.types import TYPES, Type
from luthier.export.compressed.write import write_compressed
from luthier.models.load import load_model
from luthier.models.quantised.packed import packed_model
from tiny_models import build

SMALL = Type(4, group=8)


def dense(weight_MK: Tensor, hessian_KK: Tensor, chosen: Type) -> Tensor:
    """Each column's rounding error is made up for by the exact least-squares answer of all columns that are left:
    the row of the inverse of their part of H, found anew for each column."""
    left = weight_MK.double().clone()
    num_in = left.shape[1]
    scale_MK = chosen.scales(weight_MK, torch.bfloat16).double().repeat_interleave(chosen.group or num_in, 1)
    damped = hessian_KK + DAMPING * hessian_KK.diagonal().mean() * torch.eye(num_in, dtype=torch.float64)
    free = hessian_KK.diagonal().argsort(descending=True, stable=True).tolist()
    codes = torch.empty_like(left)
    while free:
        k = free[0]
        inverse = torch.linalg.inv(damped[free][:, free])
        codes[:, k] = (left[:, k] / scale_MK[:, k]).round().clamp(-8, 7)
        lost = left[:, k] - codes[:, k] * scale_MK[:, k]
        left[:, free] -= lost[:, None] * (inverse[0] / inverse[0, 0])
        free = free[1:]
    return codes


def correlated(tokens: int, num_in: int) -> Tensor:
    """Inputs that say something of each other, some columns much larger than others."""
    mixed = torch.randn(tokens, num_in, dtype=torch.float64) @ torch.randn(
        num_in, num_in, dtype=torch.float64
    )
    return mixed * torch.logspace(-1, 1, num_in, dtype=torch.float64)[torch.randperm(num_in)]


def error(weight_MK: Tensor, codes_MK: Tensor, x_TK: Tensor, chosen: Type) -> float:
    scale_MK = chosen.scales(weight_MK, torch.bfloat16).repeat_interleave(
        chosen.group or weight_MK.shape[1], 1
    )
    return float((x_TK @ (weight_MK - codes_MK * scale_MK).double().T).square().sum())


@pytest.mark.parametrize("num_in", [16, 200])
@pytest.mark.parametrize("tokens", [7, 500])
def test_it_is_the_dense_formulation(tokens: int, num_in: int) -> None:
    torch.manual_seed(0)
    weight_MK, x_TK = torch.randn(12, num_in), correlated(tokens, num_in)
    hessian_KK = x_TK.T @ x_TK
    scale_MG = SMALL.scales(weight_MK, torch.bfloat16)
    found = gptq_codes(weight_MK, hessian_KK, scale_MG, SMALL)
    assert torch.equal(found, dense(weight_MK, hessian_KK, SMALL))
    nearest = SMALL.codes(weight_MK, scale_MG.repeat_interleave(8, 1))
    assert error(weight_MK, found, x_TK, SMALL) < 0.8 * error(weight_MK, nearest, x_TK, SMALL)


@pytest.mark.parametrize("kind", ["int4", "int8"])
def test_inputs_that_say_nothing_of_each_other_give_the_nearest_codes(kind: str) -> None:
    torch.manual_seed(0)
    chosen, weight_MK = TYPES[kind], torch.randn(6, 256)
    scale_MG = chosen.scales(weight_MK, torch.bfloat16)
    codes_MK = gptq_codes(weight_MK, torch.eye(256), scale_MG, chosen)
    parts, nearest = (
        chosen.packed(codes_MK, scale_MG, torch.bfloat16),
        chosen.nearest(weight_MK, torch.bfloat16),
    )
    assert parts.keys() == nearest.keys()
    assert all(torch.equal(parts[name], nearest[name]) for name in parts)


def test_where_nothing_is_read_there_is_nothing_to_go_by() -> None:
    weight_MK = torch.randn(4, 16)
    for hessian_KK in (torch.zeros(16, 16), torch.full((16, 16), torch.nan)):
        with pytest.raises(ModelError, match="is not finite or zero, so nothing can be rounded by it"):
            gptq_codes(weight_MK, hessian_KK, SMALL.scales(weight_MK, torch.bfloat16), SMALL)


ROWS = [[3 + (7 * row + token * token) % 90 for token in range(20 + row)] for row in range(12)]


@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi3", "qwen3_moe", "olmo2"])
def test_layers_are_walked_as_the_model_walks_them(kind: str) -> None:
    """Left as they are, each layer reads what it reads in the whole model, with windows, soft caps and experts."""
    model = build(kind, **({"sliding_window": 6} if kind == "gemma2" else {}))
    seen: dict[str, list[Tensor]] = {}
    names = [name for name, module in model.named_modules() if type(module) is torch.nn.Linear]
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda module, given, name=name: seen.setdefault(name, []).append(given[0][0])
        )
        for name in names
    ]
    with torch.no_grad():
        for row in ROWS:
            model(input_ids=torch.tensor([row]), use_cache=False)
    for hook in hooks:
        hook.remove()
    reached = 0
    for layer in layers_on(model, ROWS):
        inside = [name.removeprefix(f"{layer.name}.") for name in names if name.startswith(f"{layer.name}.")]
        found = hessians(layer, inside)
        assert found.keys() == set(inside)
        for name, sums in found.items():
            x_TK = torch.cat(seen[f"{layer.name}.{name}"])
            torch.testing.assert_close(sums, x_TK.T @ x_TK, rtol=1e-4, atol=1e-3)
            reached += 1
        if kind == "llama":
            assert found["self_attn.q_proj"] is found["self_attn.v_proj"] is not found["self_attn.o_proj"]
    assert reached == len(names) - 1  # all but the head


def test_hidden_states_that_go_another_way_are_refused() -> None:
    model: Any = build("llama")

    class Adding(type(model.model)):
        def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
            hidden = self.embed_tokens(input_ids)
            for layer in self.layers:
                hidden = layer(hidden + 1)
            return hidden

    model.model.__class__ = Adding
    with pytest.raises(ModelError, match="do not simply go from one decoder layer of LlamaForCausalLM"):
        list(layers_on(model, ROWS))
    assert type(model.model.layers[0]).__name__ == "LlamaDecoderLayer"  # stand-ins are gone
    model = build("llama")
    model.model.layers = torch.nn.Module()
    with pytest.raises(ModelError, match="keeps no list of its decoder layers"):
        list(layers_on(model, ROWS))


def test_what_is_written_is_what_was_meant_and_errs_less(tmp_path: Path) -> None:
    """Every layer's error on the rows, as the files decode, with the inputs that it has behind rounded layers."""
    sizes = {"hidden_size": 64, "intermediate_size": 160, "head_dim": 16}
    saved("qwen3", tmp_path / "model", **sizes)
    (tmp_path / "out").mkdir()
    meant: dict[str, Any] = {}

    def make(folder: Path, chosen: Type, dtype: torch.dtype, linear: Any) -> Any:
        assert chosen.group == 32  # what divides 64 and 160
        meant.update(by_gptq(folder, chosen, dtype, linear, ROWS).parts)
        return by_gptq(folder, chosen, dtype, linear, ROWS)

    assert write_compressed(tmp_path / "model", tmp_path / "out", "int4", make=make) == []
    packed = packed_model(tmp_path / "out")
    assert packed is not None and packed.weights.keys() == meant.keys()
    plain = load_model(tmp_path / "model", torch.float32, torch.device("cpu"))
    walked = load_model(tmp_path / "model", torch.float32, torch.device("cpu"))
    chosen, better = Type(4, group=32), 0
    for layer in layers_on(walked, ROWS):
        inside = [name.removeprefix(f"{layer.name}.") for name in meant if name.startswith(f"{layer.name}.")]
        for name, hessian in hessians(layer, inside).items():
            full = f"{layer.name}.{name}"
            for part, tensor in meant[full].items():
                assert torch.equal(packed.weights[full][part][...], tensor), (full, part)
            weight = plain.get_submodule(full).weight.detach()
            decoded = packed.decoded(full, torch.float32)
            scale_MG = chosen.scales(weight, torch.bfloat16)
            grouped = weight.view(*scale_MG.shape, -1)
            nearest = (chosen.codes(grouped, scale_MG.unsqueeze(-1)) * scale_MG.unsqueeze(-1)).view_as(weight)
            ours, rounded = (((w - weight) @ hessian * (w - weight)).sum() for w in (decoded, nearest))
            assert ours <= rounded, full
            better += int(ours < 0.9 * rounded)
            walked.get_submodule(full).weight.data.copy_(decoded)
    assert better == len(meant)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["weights"]["group_size"] == 32
