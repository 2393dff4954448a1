"""`luthier export RUN --to FORM`: a run's folder in, a model folder or a file out, or one message."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from lora_models import build, difference, logits, teach
from luthier.cli.main import main
from luthier.errors import ConfigError
from luthier.export import forms
from luthier.export.forms import chosen_form, help_of_forms, known_forms
from luthier.models.adapter_files import load_adapter, save_adapter
from luthier.models.fingerprint import mark_base
from luthier.models.lora import apply_lora
from luthier.runs.folder import RunFolder


def finished(root: Path, trained: str = "adapter") -> RunFolder:
    """A run on a tiny base model, as training leaves it."""
    build("llama").save_pretrained(root / "base")
    config = f"model: {root / 'base'}\ndata: rows.jsonl\nlora: {{rank: 2}}\n"
    folder = RunFolder.create(root / "runs", "tiny", config_yaml=config)
    if trained == "adapter":
        model = build("llama")
        apply_lora(model, rank=2)
        teach(model)
        save_adapter(model, folder.adapter, base_name=str(root / "base"))
    elif trained == "model":
        folder.model.mkdir()
    return folder


@pytest.mark.parametrize("own_place", [False, True])
def test_merges_into_the_runs_folder_or_where_it_is_told(
    own_place: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(tmp_path)
    target = tmp_path / "elsewhere" / "model" if own_place else folder.path / "merged"
    out = ["--out", str(target)] if own_place else []
    assert main(["export", str(folder.path), "--to", "merged", "--no-verify", *out]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("Not verified: --no-verify was given.") and second == f"merged model: {target}"
    merged, adapted = AutoModelForCausalLM.from_pretrained(target), build("llama")
    load_adapter(adapted, folder.adapter)
    assert difference(logits(merged), logits(adapted)) < 1e-5
    assert difference(logits(merged), logits(build("llama"))) > 0.01


@pytest.mark.parametrize(
    ("trained", "options", "message"),
    [
        (
            "adapter",
            ["--to", "gguf"],
            "--to is 'gguf', which is not a form that can be written. Known: ",
        ),
        (
            "adapter",
            ["--to", "gguf:q3"],
            "and 'q3' is no type that can be written. Known: f32, f16, bf16, q8_0, ",
        ),
        ("model", [], "tuned all weights, so there is no adapter to merge: its model is"),
        ("nothing", [], "has no adapter/ yet: it has not finished. Continue it with --resume."),
    ],
)
def test_what_cannot_be_exported(
    trained: str, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(tmp_path, trained)
    assert main(["export", str(folder.path), *options]) == 2
    assert message in capsys.readouterr().err


def test_an_existing_folder_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = finished(tmp_path)
    (folder.path / "merged").mkdir()
    assert main(["export", str(folder.path)]) == 2
    assert "merged exists already" in capsys.readouterr().err.replace("\n", " ")


@pytest.mark.parametrize("trained", ["adapter", "model"])
def test_a_gguf_holds_what_was_trained(
    trained: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    from gguf_models import saved

    model = saved("qwen3", tmp_path / "base")
    config_of = model.config  # transformers' reader misses the size of heads
    config = f"model: {tmp_path / 'base'}\ndata: rows.jsonl\nlora: {{rank: 2}}\n"
    folder = RunFolder.create(tmp_path / "runs", "tiny", config_yaml=config)
    if trained == "adapter":
        apply_lora(model, rank=2)
        teach(model)
        save_adapter(model, folder.adapter, base_name=str(tmp_path / "base"))
    else:
        saved("qwen3", folder.model, seed=5)
        model = AutoModelForCausalLM.from_pretrained(folder.model)
    assert main(["export", str(folder.path), "--to", "gguf:F32"]) == 0
    file = folder.path / "gguf" / "tiny-f32.gguf"
    out = capsys.readouterr().out
    assert out.endswith(f"\nGGUF: {file}\n") and [*file.parent.iterdir()] == [file]
    assert f"Verdict: {file} is the model that was trained." in out and "texts written for this" in out
    again = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, config=config_of)
    assert difference(logits(again), logits(model)) < 1e-5
    assert main(["export", str(folder.path), "--to", "gguf:f32"]) == 2
    assert "tiny-f32.gguf exists already" in capsys.readouterr().err.replace("\n", " ")


def test_every_form_is_listed_from_its_file_and_says_what_it_is() -> None:
    names = {file.stem.replace("_", "-") for file in Path(forms.__file__).parent.glob("[!_]*.py")}
    assert names == known_forms().keys() >= {"merged", "gguf"}
    told = help_of_forms()
    for name in names:
        assert re.search(rf"\b{name}(:TYPE|\[:TYPE\])?: [a-z]", told)
        write, kind = chosen_form(f"{name}:q8_0" if f"{name}:TYPE" in told else name)
        assert callable(write) and (kind is None) == (f"{name}: " in told)
    with pytest.raises(ConfigError, match="'merged:q8_0', which is not a form"):
        chosen_form("merged:q8_0")


def test_another_base_than_that_of_the_training_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = finished(tmp_path)
    mark_base(folder.adapter, tmp_path / "base", "base")
    assert main(["export", str(folder.path), "--no-verify"]) == 0
    model = build("llama")
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    model.save_pretrained(tmp_path / "base")
    capsys.readouterr()
    assert main(["export", str(folder.path), "--out", str(tmp_path / "again")]) != 0
    assert "holds other weights than those" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()
