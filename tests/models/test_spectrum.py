"""Signal and noise of matrices, and the ranking by them."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import luthier.models.tuning
from luthier.cli.spectrum import command
from luthier.config.plugins import load_plugin
from luthier.errors import ConfigError
from luthier.models.tuning._parts import Weights
from luthier.models.tuning._signal import best, kind_of, rank, signal_to_noise, singular_values
from tiny_models import tiny_llama
from tiny_runs import save_tiny_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def noise(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_singular_values_are_those_of_an_svd() -> None:
    for shape in ((30, 70), (70, 30), (20, 20)):
        expected = torch.linalg.svdvals(noise(*shape).double())
        torch.testing.assert_close(singular_values(noise(*shape)), expected, rtol=1e-9, atol=1e-7)


def test_the_ratio_is_the_definition_written_out() -> None:
    weight = noise(40, 60) + 3 * noise(40, 2, 1) @ noise(2, 60, 2)
    s = sorted(torch.linalg.svdvals(weight.double()).tolist())
    quartile = lambda q: s[int(q * 39)] + (q * 39 - int(q * 39)) * (s[int(q * 39) + 1] - s[int(q * 39)])  # noqa: E731
    limit = (quartile(0.75) - quartile(0.25)) / 1.349 * (1 + math.sqrt(40 / 60))
    above, below = sum(v for v in s if v > limit), sum(v for v in s if v <= limit)
    assert math.isclose(signal_to_noise(weight), above / below / s[-1], rel_tol=1e-6)
    stack = torch.stack([weight, noise(40, 60)])
    mean = (signal_to_noise(weight) + signal_to_noise(noise(40, 60))) / 2
    assert math.isclose(signal_to_noise(stack), mean, rel_tol=1e-9)
    assert signal_to_noise(torch.zeros(4, 5)) == 0.0


def test_a_scale_changes_the_ratio_by_its_inverse_alone() -> None:
    one, two = signal_to_noise(noise(30, 50)), signal_to_noise(4 * noise(30, 50))
    assert math.isclose(one, 4 * two, rel_tol=1e-6)


def test_the_best_of_each_kind() -> None:
    ratios = {f"model.layers.{i}.mlp.{m}.weight": r for i in range(4) for m, r in (("up", i), ("down", -i))}
    assert kind_of("model.layers.3.mlp.up.weight") == "model.layers.*.mlp.up.weight"
    assert best(ratios, 0.25) == {"model.layers.3.mlp.up.weight", "model.layers.0.mlp.down.weight"}
    assert len(best(ratios, 0.01)) == 2 and len(best(ratios, 1.0)) == 8


def test_ratios_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {"a.0.w": noise(8, 9), "a.1.w": noise(8, 9, 1)}
    first = rank(weights)
    monkeypatch.setattr("luthier.models.tuning._signal.signal_to_noise", lambda weight: pytest.fail("again"))
    assert rank(weights) == first


def test_the_command_writes_what_the_setting_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_tiny_model(tmp_path / "model")
    command(str(folder), tmp_path / "ranking.json", share=0.5, revision=None, device="cpu", offline=True)
    shown = capsys.readouterr().out
    assert "model.layers.*.self_attn.q_proj.weight: layers" in shown and "14 ratios" in shown
    model = tiny_llama(vocab_size=300, tie_word_embeddings=True)
    weights = Weights(model)
    ratios = json.loads((tmp_path / "ranking.json").read_text())["ratios"]
    way = load_plugin(luthier.models.tuning, "spectrum")(share=0.5, ranking=str(tmp_path / "ranking.json"))
    chosen = way.choose(weights, False, lambda line: None)
    assert chosen == {weights.names[name] for name in best(ratios, 0.5)} and len(chosen) == 7


@pytest.mark.parametrize("text", ["", "[]", '{"ratios": 3}', '{"ratios": {"a": 1}}'])
def test_another_file_is_no_ranking(text: str, tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(text)
    way: Any = load_plugin(luthier.models.tuning, "spectrum")(ranking=str(tmp_path / "r.json"))
    with pytest.raises(ConfigError, match=r"luthier spectrum|another one"):
        way.choose(Weights(tiny_llama()), False, lambda line: None)
