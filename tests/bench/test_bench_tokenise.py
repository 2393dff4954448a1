"""The measurement of tokenisation: both sides do the same work, and what is written says what was measured."""

import json
from pathlib import Path

import pytest

from bench import tokenise

TEXTS = ["The quick brown fox jumps over the lazy dog and then it sleeps, and nobody asks why. " * 40] * 3


def test_rows_are_the_same_for_a_seed_and_have_the_turns_asked_for() -> None:
    first, again, other = (tokenise.conversations(TEXTS, 5, seed) for seed in (1, 1, 2))
    assert [row.messages for row in first] == [row.messages for row in again]
    assert [row.messages for row in first] != [row.messages for row in other]
    (long,) = tokenise.conversations(TEXTS, 1, turns=tokenise.TURNS)
    assert len(long.messages) == tokenise.TURNS


def test_the_sides_take_turns_and_the_fastest_round_counts() -> None:
    calls: list[str] = []
    seconds = tokenise.fastest(3, lambda: calls.append("plain"), lambda: calls.append("ours"))
    assert calls == ["plain", "ours"] * 3
    assert all(0 <= value < 1 for side in seconds for value in side)


def test_a_run_writes_its_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number, text in enumerate(TEXTS):
        (texts / f"{number}.txt").write_text(text)
    arguments = ["--rows", "4", "--rounds", "1", "--texts", str(texts), "--out", str(tmp_path)]
    status = tokenise.main(arguments)
    (file,) = tmp_path.glob("tokenise-chatml-*.json")
    result = json.loads(file.read_text())
    assert status == (0 if result["reached"] else 1)
    assert result["many"]["rows"] == 4 and result["long"]["turns"] == tokenise.TURNS
    rate = result["many"]["luthier_tokens_per_s"] / result["many"]["encode_batch_tokens_per_s"]
    assert rate == pytest.approx(result["many"]["rate"], rel=0.02)
    assert json.loads(capsys.readouterr().out)["many"] == result["many"]
