"""llama.cpp's own quantiser: the types that it writes, what they need, and which weights it is told to keep exact."""

import ctypes
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

gguf = pytest.importorskip("gguf")

from gguf_models import SPECIAL, saved  # noqa: E402
from lora_models import teach  # noqa: E402
from luthier.cli.main import main  # noqa: E402
from luthier.errors import ModelError, RunError  # noqa: E402
from luthier.export.gguf.importance import importance  # noqa: E402
from luthier.export.gguf.llama import heard, installed  # noqa: E402
from luthier.export.gguf.quantise import NAMES, NEED_IMPORTANCE, quantise  # noqa: E402
from luthier.export.gguf.write import write_gguf  # noqa: E402
from luthier.models.adapter_files import save_adapter  # noqa: E402
from luthier.models.lora import apply_lora  # noqa: E402
from luthier.runs.folder import RunFolder  # noqa: E402

ROWS = [[5, 17, 3, 88, 41, 9, 60], [8, 8, 1, 90]]
llama = pytest.mark.skipif(not installed(), reason="llama-cpp-python is not installed")


def run_on(base: Path, root: Path) -> RunFolder:
    """A finished run of an adapter on the model in `base`."""
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    row = {"messages": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]}
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for _ in range(4)))
    config = f"model: {base}\nlora: {{rank: 2}}\ndata: {root / 'rows.jsonl'}\n"
    folder = RunFolder.create(root / "runs", "tiny", config_yaml=config)
    apply_lora(model, rank=2)
    teach(model)
    save_adapter(model, folder.adapter, base_name=str(base))
    return folder


@pytest.mark.parametrize("kind", sorted(SPECIAL))
def test_importance_is_the_mean_square_of_what_each_matrix_is_multiplied_with(
    kind: str, tmp_path: Path
) -> None:
    """For every matrix of the file but tables, routers and stacked experts; checked by products with the weight."""
    saved(kind, tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "model.gguf", "f32")
    found = importance(tmp_path / "model", ROWS)
    matrices = {
        one.name: one.shape for one in gguf.GGUFReader(tmp_path / "model.gguf").tensors if len(one.shape) == 2
    }
    expected = {name for name in matrices if name.startswith("blk.") and "gate_inp" not in name}
    assert {name for name in found if "gate_inp" not in name} - {"output.weight"} == expected
    for name, values in found.items():
        if name in matrices:
            assert values.shape == (int(matrices[name][0]),) and (values > 0).all(), name


def test_importance_by_hand(tmp_path: Path) -> None:
    model: Any = saved("qwen2", tmp_path / "model")
    found = importance(tmp_path / "model", ROWS)["blk.0.attn_q.weight"]
    with torch.no_grad():
        states = [
            model.model.layers[0].input_layernorm(model.model.embed_tokens(torch.tensor(row))) for row in ROWS
        ]
    right = torch.cat(states).double().square().mean(0)
    np.testing.assert_allclose(found, right.numpy(), rtol=1e-5)


def test_without_llama_cpp_the_extra_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.export.gguf.quantise.installed", lambda: False)
    saved("qwen3", tmp_path / "base")
    folder = run_on(tmp_path / "base", tmp_path)
    assert main(["export", str(folder.path), "--to", "gguf:q4_k_m"]) == 2
    assert "pip install 'luthier[llama]'" in capsys.readouterr().err.replace("\n", " ")
    assert not (folder.path / "gguf").exists()


@llama
@pytest.mark.parametrize("kind", NAMES)
def test_every_type_is_written_as_what_it_says(kind: str, tmp_path: Path) -> None:
    """On rows of 256 weights, where each type has its own blocks; and the importance of columns is listened to."""
    saved(
        "qwen3", tmp_path / "model", hidden_size=256, intermediate_size=256, num_hidden_layers=1, head_dim=64
    )
    write_gguf(tmp_path / "model", tmp_path / "true.gguf", "f32")
    weights = importance(tmp_path / "model", ROWS)
    quantise(tmp_path / "true.gguf", tmp_path / "model.gguf", kind, weights)
    truth, found = (
        {one.name: one for one in gguf.GGUFReader(tmp_path / name).tensors}
        for name in ("true.gguf", "model.gguf")
    )
    assert truth.keys() == found.keys()
    bits = (
        8
        * sum(int(one.n_bytes) for one in found.values())
        / sum(int(one.n_elements) for one in found.values())
    )
    assert bits < 11  # embeddings of so small a model weigh much
    name = "blk.0.ffn_up.weight"
    assert found[name].tensor_type not in (0, 1) and found["blk.0.attn_norm.weight"].tensor_type == 0
    right = gguf.quants.dequantize(truth[name].data, truth[name].tensor_type)
    near = gguf.quants.dequantize(found[name].data, found[name].tensor_type)
    assert 0 < np.linalg.norm(near - right) / np.linalg.norm(right) < 0.5


@llama
def test_importance_changes_what_is_rounded_well(tmp_path: Path) -> None:
    saved(
        "qwen3", tmp_path / "model", hidden_size=256, intermediate_size=256, num_hidden_layers=1, head_dim=64
    )
    write_gguf(tmp_path / "model", tmp_path / "true.gguf", "f32")
    name = "blk.0.ffn_up.weight"
    heavy = np.ones(256, np.float32)
    heavy[:32] = 1000
    everything = dict.fromkeys(importance(tmp_path / "model", ROWS), heavy)
    truth = next(one for one in gguf.GGUFReader(tmp_path / "true.gguf").tensors if one.name == name)
    right = gguf.quants.dequantize(truth.data, truth.tensor_type)
    errors = []
    for number, told in enumerate((None, everything)):
        quantise(tmp_path / "true.gguf", tmp_path / f"{number}.gguf", "q4_k_m", told)
        one = next(one for one in gguf.GGUFReader(tmp_path / f"{number}.gguf").tensors if one.name == name)
        off = gguf.quants.dequantize(one.data, one.tensor_type) - right
        errors.append(float((off**2 * heavy).sum()))
    assert errors[1] < errors[0]


@llama
@pytest.mark.parametrize("kind", sorted(NEED_IMPORTANCE))
def test_the_smallest_types_need_to_know_what_matters(kind: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="needs to know which weights matter"):
        quantise(tmp_path / "true.gguf", tmp_path / "model.gguf", kind)


@llama
def test_the_command_writes_and_proves_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(
        "qwen3", tmp_path / "base", hidden_size=256, intermediate_size=256, num_hidden_layers=1, head_dim=64
    )
    folder = run_on(tmp_path / "base", tmp_path)
    assert main(["export", str(folder.path), "--to", "gguf:q4_k_m"]) == 0
    out = capsys.readouterr().out
    assert "measured on 4 rows" in out and "so few bits" in out and "engine to its file" in out
    assert [one.name for one in (folder.path / "gguf").iterdir()] == ["tiny-q4_k_m.gguf"]


@llama
def test_what_llama_cpp_warns_of_is_one_sentence(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    saved("qwen3", tmp_path / "model", hidden_size=64, intermediate_size=256, num_hidden_layers=2)
    write_gguf(tmp_path / "model", tmp_path / "true.gguf", "f32")
    capfd.readouterr()
    notes = quantise(tmp_path / "true.gguf", tmp_path / "model.gguf", "q4_k_m")
    assert capfd.readouterr().err == ""
    tensors = gguf.GGUFReader(
        tmp_path / "model.gguf"
    ).tensors  # of a tied head it takes 8 bits without a warning
    kinds = Counter(one.tensor_type.name.lower() for one in tensors if one.name != "token_embd.weight")
    others = {name: number for name, number in kinds.items() if name in ("q5_0", "q8_0")}
    (note,) = notes
    assert f"The rows of {sum(others.values())} matrices do not divide into the blocks of 256" in note
    assert all(f"{number} {name}" in note for name, number in others.items()) and others
    wide = {"hidden_size": 256, "intermediate_size": 256, "num_attention_heads": 4, "head_dim": 64}
    saved("qwen3", tmp_path / "wide", **wide)
    write_gguf(tmp_path / "wide", tmp_path / "wide.gguf", "f32")
    assert quantise(tmp_path / "wide.gguf", tmp_path / "quiet.gguf", "q4_k_m") == ()


@llama
def test_what_llama_cpp_said_is_in_the_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.gguf").write_bytes(b"GGUF" + bytes(64))
    capfd.readouterr()
    with pytest.raises(RunError, match=r"could not write gguf:q4_k_m\. .* The last that it said: .*\w"):
        quantise(tmp_path / "no.gguf", tmp_path / "model.gguf", "q4_k_m")
    assert capfd.readouterr().err == ""


@llama
def test_llama_cpp_tells_its_own_listener_again_afterwards(tmp_path: Path) -> None:
    from llama_cpp import llama_log_callback, llama_log_get

    def listening() -> int | None:
        found, given = llama_log_callback(), ctypes.c_void_p()
        llama_log_get(ctypes.byref(found), ctypes.byref(given))
        return ctypes.cast(found, ctypes.c_void_p).value

    before = listening()
    with heard() as told:
        assert listening() != before
    assert listening() == before and told == []
