"""The check of the prediction for a Raspberry Pi, with a made-up llama.cpp whose speed is known."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import pi
from gguf_models import saved


class MadeUp:
    """A file that is read at a billion bytes a second, one type at half of it."""

    def __init__(self, file: Path, threads: int):
        self.kind, self.size = file.stem, file.stat().st_size

    def close(self) -> None:
        pass


@pytest.fixture
def speeds(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What a token reads in each type, as the formula says; filled when files are opened."""
    read: dict[str, int] = {}
    real = pi.planned_sizes

    def noted(folder: Path, kind: str) -> list[tuple[str, int]]:
        sizes = list(real(folder, kind))
        read[kind] = pi.read_per_token(sizes)
        return sizes

    def speed(model: MadeUp, clock: Callable[[], float]) -> float:
        return (5e8 if model.kind == "q5_0" else 1e9) / read[model.kind]

    monkeypatch.setattr(pi, "planned_sizes", noted)
    monkeypatch.setattr(pi, "opened", MadeUp)
    monkeypatch.setattr(pi, "decode_speed", speed)
    monkeypatch.setattr(pi, "numpy_bandwidth", lambda: 2e9)
    return read


def test_a_memory_bound_program_is_predicted_exactly(
    speeds: dict[str, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    saved("llama", tmp_path / "model")
    monkeypatch.setattr(pi, "RESULTS", tmp_path)
    assert pi.main(["--model", str(tmp_path / "model"), "--threads", "1", "--rounds", "2"]) == 0
    (kept,) = tmp_path.glob("pi-*.json")
    found = json.loads(kept.read_text())
    assert found["bandwidth"] == pytest.approx(1e9) and found["clock"] == "process_time"
    off = {kind: told["off"] for kind, told in found["types"].items()}
    assert off == pytest.approx({"f16": 0.0, "q8_0": 0.0, "q5_0": 1.0, "q4_0": 0.0}, abs=1e-9)
    assert speeds["f16"] > speeds["q8_0"] > speeds["q5_0"] > speeds["q4_0"]
    assert "q5_0" in capsys.readouterr().out
