"""Every form of export is tried, its verdict is kept, and what is kept is not measured again."""

import json
from pathlib import Path

import pytest

pytest.importorskip("gguf")

from bench.every_target import TYPES, all_forms, main

from export_runs import finished_run
from luthier.export.forms import known_forms


def test_every_form_of_the_registry_is_tried() -> None:
    tried = list(all_forms())
    assert {form.partition(":")[0] for form in tried} == set(known_forms())
    assert {f"gguf:{kind}" for kind in TYPES["gguf"]} <= set(tried)


def test_verdicts_are_kept_and_not_asked_for_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = finished_run(tmp_path)
    run.path.rename(tmp_path / "tiny-lora")
    out = tmp_path / "found.json"
    asked = ["x", "--name", "tiny", "--adapters", "lora", "--scratch", str(tmp_path), "--out", str(out)]
    assert main([*asked, "--only", "merged", "gguf:q8_0"]) == 0
    found = json.loads(out.read_text())["forms"]["tiny, lora"]
    assert set(found) == {"merged", "gguf:q8_0"}
    assert all(one["verdict"] == "same" and one["found"]["places"] > 0 for one in found.values())
    assert not (tmp_path / "written-lora").exists()
    capsys.readouterr()
    assert main([*asked, "--only", "merged", "nothing"]) == 1
    again = capsys.readouterr().out.splitlines()
    assert len(again) == 1 and again[0].startswith("tiny, lora, nothing: failed: --to is 'nothing'")
