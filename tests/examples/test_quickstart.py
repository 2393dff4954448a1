"""The quickstart from end to end with a tiny model: it ends with a proven GGUF file and a table of what it compares."""

import json
import shutil
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

from gguf_models import byte_merging
from tiny_models import tiny_llama
from training_parts import ROOT

pytest.importorskip("gguf")
MODULES = ("quickstart", "make_tickets", "phrases")


@pytest.fixture
def quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The script in a folder of its own, where it writes its data."""
    folder = tmp_path / "tickets"
    shutil.copytree(
        ROOT / "examples" / "tickets", folder, ignore=shutil.ignore_patterns("data", "__pycache__")
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.chdir(tmp_path)
    yield import_module("quickstart")
    for name in MODULES:
        sys.modules.pop(name, None)


def test_it_ends_with_a_proven_file_and_the_table(
    quickstart: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tokenizer = byte_merging()
    shape = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    tiny_llama(**shape, max_position_embeddings=1024).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    write = quickstart.make_tickets.main
    few = ["--train", "40", "--test", "8"]
    monkeypatch.setattr(quickstart.make_tickets, "main", lambda asked: write([*asked, *few]))
    monkeypatch.setattr(quickstart, "ROWS", 5)
    monkeypatch.setattr(quickstart, "PROMPTS", 2)
    monkeypatch.setattr(quickstart, "ANSWER_TOKENS", 6)
    settings = [
        f"model.name={tmp_path / 'model'}",
        "train.steps=3",
        "eval.answer_tokens=4",
        "data.cache=false",
    ]
    assert quickstart.main(settings) == 0
    out = capsys.readouterr().out
    run = tmp_path / "runs" / "quickstart-1"
    (file,) = (run / "gguf").glob("*.gguf")
    file = file.relative_to(tmp_path)
    assert f"Verdict: {file} is the model that was trained." in out
    told = json.loads((run / "verification" / "gguf-q8_0.json").read_text())
    assert told["verdict"] == "same" and told["found"]["prompts"] == 2
    lines = out[out.index("On the first 5 held-out e-mails") :].splitlines()
    assert lines[2].split()[:3] == ["size", "tokens/s", "perplexity"]
    assert [line.split()[0] for line in lines[3:6]] == ["base", "adapter", file.stem]
    assert all("[0.000, 0.434]" in line for line in lines[3:6])  # Wilson's interval of none of 5
    assert f"GGUF file:     {file}" in out and (run / "merged" / "model.safetensors").is_file()
    assert quickstart.free_name() == "quickstart-2"


def test_the_first_rows_of_a_file(quickstart: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("one\ntwo\nthree\n")
    found = quickstart.first_rows(tmp_path / "rows.jsonl", 2)
    assert found == tmp_path / "rows-2.jsonl" and found.read_text() == "one\ntwo\n"
