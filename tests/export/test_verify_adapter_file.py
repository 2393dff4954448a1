"""An adapter's GGUF is run in llama.cpp beside its base model, and another adapter is never taken for it."""

import json
from pathlib import Path

import pytest

pytest.importorskip("gguf")

from gguf_models import saved
from lora_models import teach
from luthier.cli.main import main
from luthier.config.load import load_config
from luthier.errors import RunError
from luthier.export.gguf.adapter import write_adapter
from luthier.export.gguf.llama import installed
from luthier.models.adapter_files import save_adapter
from luthier.models.lora import apply_lora
from luthier.runs.folder import RunFolder
from luthier.training import verify_export as verifying

LLAMA = pytest.mark.skipif(not installed(), reason="llama-cpp-python is not installed")


def finished(root: Path, more: str = "") -> RunFolder:
    """A run on a tiny base model, as training leaves it."""
    model = saved("llama", root / "base")
    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "Because."}]
    (root / "rows.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    config = f"model: {root / 'base'}\nlora: {{rank: 2}}\ndata: {{path: {root / 'rows.jsonl'}}}\n{more}"
    folder = RunFolder.create(root / "runs", "tiny", config_yaml=config)
    apply_lora(model, rank=2)
    teach(model)
    save_adapter(model, folder.adapter, base_name=str(root / "base"))
    return folder


@LLAMA
@pytest.mark.parametrize("more", ["", "quant: nf4\n"], ids=["exact base", "stored base"])
def test_it_is_the_trained_model_beside_its_base(more: str, tmp_path: Path) -> None:
    folder = finished(tmp_path, more)
    assert main(["export", str(folder.path), "--to", "gguf-lora"]) == 0
    told = json.loads((folder.path / "verification" / "gguf-lora.json").read_text())
    assert told["verdict"] == "same" and told["engine"].endswith("beside its base model in f32")
    assert told["found"]["mean_kl"] <= 1e-3 and told["found"]["same_ids"] == told["found"]["prompts"] > 0
    assert [one.name for one in (folder.path / "gguf").iterdir()] == ["tiny-lora.gguf"]  # the base's is gone


@LLAMA
def test_an_adapter_of_another_strength_is_refused(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    for file in folder.adapter.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    told = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(told | {"lora_alpha": 3 * told["lora_alpha"]}))
    file = tmp_path / "lora.gguf"
    write_adapter(tmp_path / "base", other, file, name="tiny")
    config = load_config(folder.config)
    with pytest.raises(RunError, match=r"not the model that was trained .*lora\.unverified\.gguf"):
        verifying.verify_export(config, folder, file, "gguf-lora", base="original", say=lambda text: None)
    assert not file.exists() and (tmp_path / "lora.unverified.gguf").is_file()


def test_without_llama_cpp_it_is_told_that_nothing_was_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = finished(tmp_path)
    monkeypatch.setattr(verifying, "installed", lambda: False)
    assert main(["export", str(folder.path), "--to", "gguf-lora"]) == 0
    out = capsys.readouterr().out
    assert "Not verified: the file can be run with llama-cpp-python" in out and "luthier[llama]" in out
    assert not (folder.path / "verification").exists()
