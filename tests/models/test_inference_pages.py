"""A model that answers keeps its memory as one that trains does, unless its run was told not to."""

from pathlib import Path

import pytest

from luthier.models import inference
from tiny_runs import save_tiny_model


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each time that the allocator was told."""
    told: list[bool] = []
    monkeypatch.setattr(inference, "keep_pages", lambda: told.append(True))
    return told


def test_a_model_on_a_cpu_keeps_its_pages(tmp_path: Path, kept: list[bool]) -> None:
    inference.load_for_inference(str(save_tiny_model(tmp_path / "model")), device="cpu")
    assert kept == [True]


@pytest.mark.parametrize("keep", [True, False])
def test_a_run_says_whether_it_does(tmp_path: Path, kept: list[bool], keep: bool) -> None:
    save_tiny_model(tmp_path / "model")
    settings = f"model: {tmp_path / 'model'}\ndata: rows.jsonl\nmemory: {{keep_pages: {str(keep).lower()}}}\n"
    (tmp_path / "config.yaml").write_text(settings, encoding="utf-8")
    inference.load_for_inference(str(tmp_path), device="cpu")
    assert kept == [True] * keep
