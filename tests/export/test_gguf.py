"""GGUF files: every architecture comes back from one, by readers that are not ours, within what its type rounds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

gguf = pytest.importorskip("gguf")

from gguf_models import SPECIAL, saved  # noqa: E402
from luthier.errors import ModelError  # noqa: E402
from luthier.export.gguf.known import architecture, known_types  # noqa: E402
from luthier.export.gguf.types import TYPES, FileType  # noqa: E402
from luthier.export.gguf.write import write_gguf  # noqa: E402

READ_BY_TRANSFORMERS = sorted({*SPECIAL} - {"granite", "olmo2", "olmo3", "smollm3"})
ROUNDING = {
    "f32": 0.0,
    "f16": 4e-4,
    "bf16": 3e-3,
    "q8_0": 6e-3,
    "q5_1": 0.05,
    "q5_0": 0.06,
    "q4_1": 0.1,
    "q4_0": 0.12,
}
"""|decoded - weight| / |weight| of a matrix of normally distributed weights, at most."""


def logits(model: PreTrainedModel) -> torch.Tensor:
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 90, (2, 21), generator=draw)
    with torch.no_grad():
        return model(ids).logits.float()


def tensors(path: Path) -> dict[str, tuple[np.ndarray, Any]]:
    """Values in fp32 and types by name."""
    return {
        one.name: (
            gguf.quants.dequantize(one.data, one.tensor_type).reshape(one.shape[::-1]),
            one.tensor_type,
        )
        for one in gguf.GGUFReader(path).tensors
    }


def test_every_architecture_is_tried() -> None:
    assert sorted(SPECIAL) == known_types()


@pytest.mark.parametrize("kind", READ_BY_TRANSFORMERS)
def test_transformers_reads_the_same_model_back(kind: str, tmp_path: Path) -> None:
    model = saved(kind, tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32")
    config = model.config if kind != "mistral" else None  # it calls that a llama
    # its reader misses parts of most configurations, such as windows and caps, so only weights are asked of it
    again = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32, config=config
    ).eval()
    truth = logits(model)
    assert (logits(again) - truth).norm() / (truth - truth.mean()).norm() < 1e-5


@pytest.mark.parametrize("kind", sorted(SPECIAL))
def test_every_weight_is_in_the_file_once(kind: str, tmp_path: Path) -> None:
    """Changes of order and of norms keep the number of values; rotary tables are the only ones that are added."""
    model = saved(kind, tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32")
    found = tensors(tmp_path / "model.gguf")
    added = {name for name in found if name.startswith("rope_")}
    size = sum(values.size for name, (values, _) in found.items() if name not in added)
    assert size == sum(parameter.numel() for parameter in model.parameters())
    assert bool(added) == (kind == "llama")


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_every_type_rounds_as_little_as_it_can(kind: str, tmp_path: Path) -> None:
    saved("qwen2", tmp_path / "model", num_hidden_layers=1, intermediate_size=96, hidden_size=64)
    write_gguf(tmp_path / "model", tmp_path / "true.gguf", "f32")
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", kind)
    truth, found = tensors(tmp_path / "true.gguf"), tensors(tmp_path / "model.gguf")
    assert truth.keys() == found.keys()
    for name, (values, type_) in found.items():
        right = truth[name][0]
        error = np.linalg.norm(values - right) / np.linalg.norm(right)
        if right.ndim == 1:
            assert type_ == gguf.GGMLQuantizationType.F32 and error == 0
        else:
            assert error <= ROUNDING["q8_0" if type_ == gguf.GGMLQuantizationType.Q8_0 else kind]
            assert kind == "f32" or error > 0
    matrix = found["blk.0.ffn_up.weight"][1]
    assert matrix == gguf.GGMLQuantizationType[kind.upper()]


def test_rows_that_do_not_divide_into_blocks_stay_in_sixteen_bit() -> None:
    kinds = gguf.GGMLQuantizationType
    four: FileType = TYPES["q4_0"]
    assert four.of("blk.0.ffn_down.weight", (32, 48)) == kinds.F16
    assert four.of("blk.0.ffn_down.weight", (48, 32)) == kinds.Q4_0
    assert four.of("output.weight", (48, 32)) == kinds.Q8_0
    assert four.of("blk.0.ffn_gate_inp.weight", (8, 32)) == kinds.F32


def test_layers_can_be_kept_exact(tmp_path: Path) -> None:
    saved("qwen2", tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", "q4_0", exact=["down_proj", "layers.0.self_attn"])
    kinds = {name: kind for name, (_, kind) in tensors(tmp_path / "model.gguf").items()}
    exact = {name for name, kind in kinds.items() if kind == gguf.GGMLQuantizationType.F16}
    attention = {f"blk.0.attn_{which}.weight" for which in ("q", "k", "v", "output")}
    assert exact == {"blk.0.ffn_down.weight", "blk.1.ffn_down.weight", *attention}
    assert kinds["blk.1.attn_q.weight"] == gguf.GGMLQuantizationType.Q4_0


def test_a_weight_too_large_for_sixteen_bit_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    model = saved("qwen3", tmp_path / "model")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 4] = 1e5
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(
        ModelError, match=r"blk\.1\.ffn_up\.weight does not fit .* a value is 1e\+05.* gguf:bf16"
    ):
        write_gguf(tmp_path / "model", tmp_path / "model.gguf", "f16")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", "bf16")


@pytest.mark.parametrize(
    ("kind", "overrides", "message"),
    [
        ("gemma2", {"query_pre_attn_scalar": 16}, r"divides by the root of 8 .* by that of 16"),
        ("gemma3_text", {"layer_types": ["full_attention"] * 7}, "every 6th layer of Gemma 3 to see everything"),
        ("qwen3_moe", {"norm_topk_prob": False}, "norm_topk_prob is false"),
        ("smollm3", {"no_rope_layers": [1] * 5}, "every 4th layer of SmolLM 3 to have no positions"),
        ("qwen2", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "kind dynamic"),
    ],
)  # fmt: skip
def test_what_llama_cpp_would_compute_differently_is_refused(
    kind: str, overrides: dict[str, Any], message: str, tmp_path: Path
) -> None:
    saved(kind, tmp_path / "model", **overrides)
    with pytest.raises(ModelError, match=message):
        write_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32")
    assert not (tmp_path / "model.gguf").exists()


def test_an_unknown_architecture_is_refused_with_those_that_are_known() -> None:
    config = AutoConfig.for_model("cohere")
    with pytest.raises(ModelError, match=r"type cohere cannot be written .*: gemma2, .*, smollm3"):
        architecture(config)


def test_a_window_that_llama_cpp_ignores_bounds_the_context(tmp_path: Path) -> None:
    saved("mistral", tmp_path / "model", sliding_window=48)
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32")
    field = gguf.GGUFReader(tmp_path / "model.gguf").fields["llama.context_length"]
    assert field.contents() == 48
