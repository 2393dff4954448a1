"""Folders of compressed-tensors are loaded and compared with what was trained, like every other form."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gguf_models import saved
from lora_models import teach
from luthier.cli.main import main
from luthier.export.verify.bounds import EIGHT, FEW, bounds_of
from luthier.export.verify.engines import compressed
from luthier.models.adapter_files import save_adapter
from luthier.models.lora import apply_lora
from luthier.runs.folder import RunFolder

WORDS = ["river", "house", "green", "quick", "letter", "stone", "paper", "wind", "table", "seven"]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A finished run whose rows are there."""
    sizes = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "tie_word_embeddings": True}
    model = saved("qwen3", tmp_path / "base", **sizes)
    with (tmp_path / "rows.jsonl").open("w") as file:
        for number in range(40):
            words = f"{WORDS[number % 10]} {WORDS[number // 10]} {WORDS[(3 * number + 1) % 10]}"
            turns = [{"role": "user", "content": f"Say {words}."}, {"role": "assistant", "content": words}]
            file.write(json.dumps({"messages": turns}) + "\n")
    data = f"{{path: {tmp_path / 'rows.jsonl'}, eval_rows: 8}}"
    folder = RunFolder.create(
        tmp_path / "runs",
        "tiny",
        config_yaml=f"model: {tmp_path / 'base'}\nlora: {{rank: 2}}\ndata: {data}\n",
    )
    apply_lora(model, rank=2)
    teach(model)
    save_adapter(model, folder.adapter, base_name=str(tmp_path / "base"))
    return folder


def told_of(run: RunFolder, name: str) -> dict:
    return json.loads((run.path / "verification" / f"{name}.json").read_text())


@pytest.mark.parametrize(
    "to", ["compressed:int4", "compressed:int8", "compressed:fp8", "gptq", "gptq:int8", "awq"]
)
def test_what_is_written_is_compared(
    to: str, run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compressed, "installed", lambda: False)
    assert main(["export", str(run.path), "--to", to, "--verify-prompts", "4"]) == 0
    out = capsys.readouterr().out
    assert "compared in           transformers, from the decoded folder" in out
    assert "These are the folder's numbers, not vLLM or SGLang" in out and "luthier[compressed]" in out
    name = (to if ":" in to else f"{to}:int4").replace(":", "-")
    told = told_of(run, name)
    assert told["verdict"] == "same" and told["found"]["prompts"] == 4 and told["found"]["mean_kl"] > 0
    assert told["artefact"] == str(run.path / name) and told["form"] == name.removeprefix("compressed-")
    assert ("Which weights matter is measured on 32 rows" in out) == ("compressed" not in to)
    assert bounds_of(told["form"]) == (EIGHT if name.endswith("int8") else FEW)


@pytest.mark.parametrize("to", ["compressed:int4", "compressed:int8", "compressed:fp8"])
def test_transformers_reads_it_by_itself(to: str, run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip(
        "compressed_tensors", reason="compressed-tensors is not installed: luthier[compressed]"
    )
    assert main(["export", str(run.path), "--to", to, "--verify-prompts", "4"]) == 0
    out = capsys.readouterr().out
    assert "compared in           transformers with compressed-tensors" in out
    assert "vLLM and SGLang themselves were not run" in out
    told = told_of(run, to.replace(":", "-"))
    assert told["verdict"] == "same"
    if to.endswith("int4"):
        assert told["decoded"]["mean_kl"] < 1e-6  # two readers of one folder


def test_a_folder_that_is_another_model_is_an_error(
    run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.export.compressed import of_run

    def badly(folder: Path, out: Path, kind: str, **settings: object) -> list[str]:
        stay = real(folder, out, kind, **settings)  # type: ignore[arg-type]
        tensors = load_file(out / "model.safetensors")
        name = "model.layers.0.mlp.up_proj.weight_scale"
        tensors[name] = tensors[name].flip(0) * torch.linspace(0, 3, len(tensors[name]))[:, None].to(
            torch.bfloat16
        )
        save_file({key: one.contiguous() for key, one in tensors.items()}, out / "model.safetensors")
        return stay

    real = of_run.write_compressed
    monkeypatch.setattr(of_run, "write_compressed", badly)
    assert main(["export", str(run.path), "--to", "compressed:int8"]) == 1
    assert "is NOT the model that was trained" in capsys.readouterr().out
    assert (run.path / "compressed-int8.unverified").is_dir()
    assert told_of(run, "compressed-int8")["verdict"] == "different"


def test_without_rows_gptq_writes_nothing(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    (run.path.parent.parent / "rows.jsonl").unlink()
    assert main(["export", str(run.path), "--to", "gptq"]) == 2
    found = capsys.readouterr()
    assert "None of the run's rows can be read, so it is not known which weights matter." in found.out
    assert "gptq rounds with the run's own rows, and none of them can be read" in found.err
    assert not (run.path / "gptq-int4").exists()
    assert main(["export", str(run.path), "--to", "gptq:fp8"]) == 2
    assert "'fp8' is not a type; known: int4, int8" in capsys.readouterr().err
