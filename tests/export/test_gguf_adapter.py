"""An adapter's own GGUF: base file + alpha / R · B·A is the merged model's file, tensor by tensor."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

gguf = pytest.importorskip("gguf")

from export_runs import finished_run  # noqa: E402
from gguf_models import SPECIAL, saved  # noqa: E402
from lora_models import teach  # noqa: E402
from luthier.cli.main import main  # noqa: E402
from luthier.errors import ModelError  # noqa: E402
from luthier.export.gguf.adapter import write_adapter  # noqa: E402
from luthier.export.gguf.write import write_gguf  # noqa: E402
from luthier.export.merge import merge_to_folder  # noqa: E402
from luthier.models.adapter_files import save_adapter  # noqa: E402
from luthier.models.lora import apply_lora  # noqa: E402

TARGETS = {
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj"],
    "qwen3_moe": ["q_proj", "k_proj", "v_proj", "o_proj"],
}
USUAL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {one.name: np.array(one.data).reshape(one.shape[::-1]) for one in gguf.GGUFReader(path).tensors}


def field(path: Path, name: str) -> Any:
    return gguf.GGUFReader(path).fields[name].contents()


def adapted(kind: str, root: Path, **settings: Any) -> tuple[Path, Path]:
    """Folders of a base model and of a trained adapter."""
    model = saved(kind, root / "base")
    apply_lora(model, **{"rank": 3, "target": TARGETS.get(kind, USUAL), **settings})
    teach(model)
    save_adapter(model, root / "adapter", base_name="base")
    return root / "base", root / "adapter"


def check(base: Path, adapter: Path, root: Path) -> set[str]:
    """The law; returns the names of the tensors that change."""
    merge_to_folder(base, adapter, root / "merged")
    write_gguf(base, root / "base.gguf", "f32")
    write_gguf(root / "merged", root / "merged.gguf", "f32")
    write_adapter(base, adapter, root / "lora.gguf", name="tiny")
    alpha = field(root / "lora.gguf", "adapter.lora.alpha")
    before, after, factors = (tensors(root / f"{name}.gguf") for name in ("base", "merged", "lora"))
    changed = {name.removesuffix(".lora_a") for name in factors if name.endswith(".lora_a")}
    assert factors.keys() == {f"{name}.lora_{which}" for name in changed for which in "ab"}
    for name, weight in before.items():
        if name in changed:
            a_RK, b_MR = factors[f"{name}.lora_a"], factors[f"{name}.lora_b"]
            assert a_RK.dtype == b_MR.dtype == np.float32 and a_RK.shape[0] == b_MR.shape[1]
            weight = weight + alpha / a_RK.shape[0] * (b_MR @ a_RK)
            assert np.abs(weight - before[name]).max() > 1e-3
        np.testing.assert_allclose(weight, after[name], atol=1e-6)
    return changed


@pytest.mark.parametrize("kind", sorted(SPECIAL))
def test_base_and_adapter_are_the_merged_file(kind: str, tmp_path: Path) -> None:
    changed = check(*adapted(kind, tmp_path), tmp_path)
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    assert len(changed) == config["num_hidden_layers"] * len(TARGETS.get(kind, USUAL))
    file = tmp_path / "lora.gguf"
    assert field(file, "general.type") == "adapter" and field(file, "adapter.type") == "lora"
    assert field(file, "general.architecture") == field(tmp_path / "base.gguf", "general.architecture")


def test_modules_with_ranks_and_factors_of_their_own(tmp_path: Path) -> None:
    base, adapter = adapted("llama", tmp_path, rslora=True, alpha=5.0)
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["alpha_pattern"] = {r".*\.q_proj": 1.5}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    check(base, adapter, tmp_path)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"dora": True}, "has DoRA's lengths"),
        ({"modules_to_save": ["norm"]}, "values of its own for whole modules"),
        ({"target": ["lm_head"]}, "updates of a head that is the embeddings"),
    ],
)
def test_what_llama_cpp_cannot_add_is_refused(settings: dict[str, Any], reason: str, tmp_path: Path) -> None:
    base, adapter = adapted("qwen3", tmp_path, **settings)
    with pytest.raises(ModelError, match=f"{reason}.*--to gguf:TYPE"):
        write_adapter(base, adapter, tmp_path / "lora.gguf", name="tiny")
    assert not (tmp_path / "lora.gguf").exists()


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = finished_run(tmp_path)
    assert main(["export", str(folder.path), "--to", "gguf-lora", "--no-verify"]) == 0
    file = folder.path / "gguf" / "tiny-lora.gguf"
    assert f"GGUF of the adapter: {file}\n" in capsys.readouterr().out and tensors(file)
    assert main(["export", str(folder.path), "--to", "gguf-lora", "--no-verify"]) == 2
    assert "exists already" in capsys.readouterr().err
    whole, _ = finished_run(tmp_path / "whole", trained="model")
    assert main(["export", str(whole.path), "--to", "gguf-lora", "--no-verify"]) == 2
    assert "tuned all weights" in capsys.readouterr().err
    torch.manual_seed(0)
