"""`luthier export RUN --to compressed:TYPE`: our own reader of compressed-tensors decodes what was written."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from export_runs import finished_run
from luthier.cli.main import main
from luthier.export.compressed.types import GROUP, TYPES
from luthier.export.compressed.write import write_compressed
from luthier.models.load import load_model
from luthier.models.quantised.packed import packed_model
from tiny_models import build

BOUNDS = {"int4": 1 / 7, "int8": 1 / 127, "fp8": 1 / 8}
"""Of a code's rounding error: a half of one step, relative to the group's largest value; of floats, to the value."""


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_a_weight_decodes_to_the_nearest_code(kind: str) -> None:
    torch.manual_seed(0)
    weight_MK = torch.randn(6, 2 * GROUP)
    weight_MK[2] = 0
    chosen = TYPES[kind]
    parts = {f"layer.{name}": part for name, part in chosen.nearest(weight_MK, torch.bfloat16).items()}
    planned = chosen.parts("layer", (6, 2 * GROUP), torch.bfloat16)
    assert {name: (part.dtype, tuple(part.shape)) for name, part in parts.items()} == planned
    scale_MG = parts["layer.weight_scale"].float()
    grouped = weight_MK.view(6, scale_MG.shape[1], -1)
    if chosen.floats:
        decoded = parts["layer.weight"].float().view_as(grouped) * scale_MG.unsqueeze(-1)
        assert ((decoded - grouped).abs() <= grouped.abs() / 16 + scale_MG.unsqueeze(-1) * 2**-9).all()
        return
    each, half = 32 // chosen.bits, 2 ** (chosen.bits - 1)
    words = parts["layer.weight_packed"].to(torch.int64) & 0xFFFFFFFF
    codes = torch.stack([(words >> (chosen.bits * n)) & (2 * half - 1) for n in range(each)], -1).view_as(
        grouped
    )
    decoded = (codes - half) * scale_MG.unsqueeze(-1)
    assert ((decoded - grouped).abs() <= 0.51 * scale_MG.unsqueeze(-1) + 1e-9).all()
    assert parts["layer.weight_shape"].tolist() == [6, 2 * GROUP]


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_our_reader_decodes_the_model(kind: str, tmp_path: Path) -> None:
    model = build(
        "qwen3", hidden_size=GROUP, intermediate_size=2 * GROUP, head_dim=32, tie_word_embeddings=False
    )
    model.to(torch.bfloat16)  # pyright: ignore[reportArgumentType]
    model.save_pretrained(tmp_path / "model", max_shard_size="300KB")
    (tmp_path / "out").mkdir()
    assert write_compressed(tmp_path / "model", tmp_path / "out", kind) == []
    packed = packed_model(tmp_path / "out")
    assert packed is not None
    linear = {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    head = linear.pop("lm_head")
    assert packed.weights.keys() == linear.keys()
    chosen = TYPES[kind]
    for name, module in linear.items():
        weight = module.weight.detach().float()
        most = weight.abs().amax(1, keepdim=True)
        found = packed.decoded(name, torch.float32)
        assert (found - weight).abs().max() <= BOUNDS[kind] * most.max() and not torch.equal(found, weight)
        exact = chosen.nearest(weight, torch.bfloat16)
        assert exact.keys() == set(packed.weights[name])
        for part, tensor in exact.items():
            assert torch.equal(packed.weights[name][part][...], tensor), part
    assert torch.equal(packed.plain["lm_head.weight"][...], head.weight)
    told = AutoConfig.from_pretrained(tmp_path / "out").to_dict()["quantization_config"]
    assert told["ignore"] == ["lm_head"] and told["format"] == chosen.format
    loaded = load_model(tmp_path / "out", torch.float32, torch.device("cpu"))
    ids, exactly = (
        torch.arange(3, 19)[None],
        AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32),
    )
    with torch.no_grad():
        ours, theirs = loaded(ids).logits, exactly(ids).logits
    assert (ours - theirs).norm() / (theirs - theirs.mean()).norm() < (0.6 if kind == "int4" else 0.15)


def test_the_command_and_layers_that_do_not_divide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _ = finished_run(tmp_path, hidden_size=GROUP, intermediate_size=80)
    assert main(["export", str(folder.path), "--to", "compressed:int4", "--no-verify"]) == 0
    target = folder.path / "compressed-int4"
    told = capsys.readouterr().out
    assert f"model in int4: {target}\n" in told and "do not divide into its groups" in told
    config = json.loads((target / "config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert "model.layers.0.mlp.down_proj" in config["quantization_config"]["ignore"]
    assert (target / "chat_template.jinja").is_file() and (target / "README.md").is_file()
    assert main(["export", str(folder.path), "--to", "compressed:int3", "--no-verify"]) == 2
    assert "'int3' is not a type; known: int4, int8, fp8" in capsys.readouterr().err


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", sorted(TYPES))
def test_zeros_are_stored_as_zeros(kind: str, dtype: torch.dtype) -> None:
    """The scale of a row of zeros is not rounded to zero, by which nothing can be divided."""
    weight = torch.randn(4, 256)
    weight[1] = 0
    scale = TYPES[kind].scales(weight, dtype)
    assert (scale > 0).all()
    codes = TYPES[kind].codes(weight.view(4, scale.shape[1], -1), scale[..., None])
    assert codes.isfinite().all() and not codes[1].any()
