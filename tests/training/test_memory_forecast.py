"""What a run is said to take, against what its tensors take: a sketch has the sizes of the real thing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import luthier.optim
from config_trainers import trainer_of
from luthier.cli.main import main
from luthier.config.plugins import describe, load_plugin
from luthier.models.activations.levels import Level
from luthier.models.activations.plan import Option, peak_per_token
from luthier.models.fused.check import LOOKED_AT, _gradients
from luthier.models.fused.layer import FusedLayer
from luthier.models.lora import LoraLinear
from luthier.models.quantised.load import quantised
from luthier.optim.stepper import Stepper
from luthier.plan.memory import Kept, Sizes, kept_at_peak, peak_of
from luthier.training.living import most_alive, update_bytes
from luthier.training.sketch import sketch
from tiny_runs import tiny_config

RUNS: dict[str, dict[str, Any]] = {
    "all weights": {"lora": ...},
    "adafactor": {"lora": ..., "optim": {"name": "adafactor"}},
    "LoRA": {"lora": {"dropout": 0.0}},
    "DoRA with a head": {"lora": {"dora": True, "dropout": 0.0, "modules_to_save": ["lm_head"]}},
    "PiSSA": {"lora": {"init": "pissa", "dropout": 0.0}},
    "QLoRA": {"lora": {"dropout": 0.0}, "quant": "nf4"},
    "int8": {"lora": {"dropout": 0.0}, "quant": "int8"},
}


def fused_layers(model: nn.Module) -> list[FusedLayer]:
    found = [vars(module).get("forward") for module in model.modules()]
    return [answer for answer in found if isinstance(answer, FusedLayer)]


@pytest.mark.parametrize("name", RUNS)
def test_a_sketch_has_the_sizes_of_the_run(name: str, tmp_path: Path) -> None:
    config = tiny_config(tmp_path, **RUNS[name], eval=..., data={"eval_path": None})
    drawn = sketch(config)
    trainer = trainer_of(config, tmp_path / "tokens")
    model = trainer.policy.model
    trained = [p for p in model.parameters() if p.requires_grad]
    sizes = drawn.fixed
    assert sizes.trained == sum(p.nbytes for p in trained)
    assert sizes.gradients == sum(4 * p.numel() for p in trained)
    if "quant" in RUNS[name]:
        stored = sum(module.stored.num_bytes for module in quantised(model).values())
        codes = sum(module.stored.parts["codes"].nbytes for module in quantised(model).values())
        assert codes <= sizes.stored <= stored  # a table each, which only tiny weights notice, is not counted
    layers = fused_layers(model)
    assert len(layers) == len(drawn.layers) == 2
    for level in (Level.KEEP_ALL, Level.KEEP_INPUT):
        assert [layer.bytes_per_token(level) for layer in drawn.layers] == [
            layer.bytes_per_token(level) for layer in layers
        ]
    workspace = layers[0].attention.residual.workspace
    for level, mode in ((Level.KEEP_ALL, "keep"), (Level.KEEP_INPUT, "recompute")):
        workspace.clear()
        planner = trainer.learner.activations
        planner.mode, planner.plan = mode, None
        trainer.step(batches := trainer.source.step(0))
        assert all(layer.level is level for layer in layers)
        tokens = max(batch.tokens_T.numel() for batch in batches)
        expected = sizes.decoded + tokens * drawn.sizes(level).buffers
        assert workspace.num_bytes <= expected
        assert level is Level.KEEP_ALL or workspace.num_bytes > 0.8 * expected
    states = {id(v): v for s in trainer.optimizer.state.values() for k, v in s.items() if k != "step"}
    assert sizes.states == sum(value.nbytes for value in states.values())


def test_kept_at_peak_is_the_planner_s_peak() -> None:
    draw = np.random.default_rng(0)
    for _ in range(50):
        whole = draw.integers(10, 100, 6).tolist()
        now = [int(draw.integers(1, size + 1)) for size in whole]
        expected = peak_per_token([Option(Level.KEEP_ALL, size, 0) for size in now], whole)
        assert sum(kept_at_peak([Kept(*pair) for pair in zip(now, whole, strict=True)])) == expected


def test_the_peak_grows_with_tokens_by_what_layers_hold() -> None:
    sizes = Sizes(
        1, frozen=100, kept=(Kept(3, 5), Kept(3, 5)), buffers=2, hidden=1, logit=7, most_predictions=4
    )
    first, second = peak_of(sizes, 10), peak_of(sizes, 20)
    assert second.total - first.total == 10 * (3 + 3 + 2 + 2 + 9)
    assert first.parts["a chunk of logits"] == 28
    assert peak_of(Sizes(1, frozen=100, loading=50, update=30), 10).total == 150


@pytest.mark.parametrize("name", sorted(describe(luthier.optim)))
def test_an_update_takes_what_it_takes_without_numbers(name: str) -> None:
    weights = {"wide": nn.Parameter(torch.randn(160, 200)), "vector": nn.Parameter(torch.randn(40))}
    optimizer: Stepper = load_plugin(luthier.optim, name)().build(weights.items(), 1e-3)
    expected, taken = update_bytes(optimizer), 0
    for _ in range(2):
        for weight in weights.values():
            weight.grad = torch.randn_like(weight)
        there = [*weights.values(), *(w.grad for w in weights.values() if w.grad is not None)]
        there += [v for state in optimizer.state.values() for v in state.values()]
        taken = most_alive(optimizer.step, there)
    assert taken <= 1.3 * expected + 4096
    assert expected <= 8 * taken + 4096


def test_no_gradient_outlives_its_look() -> None:
    large, small, unused = (torch.ones(size, requires_grad=True) for size in (LOOKED_AT * 5 + 3, 4, 2))
    factor = torch.arange(large.numel(), dtype=torch.float32)
    found = _gradients((large * factor).sum() + 2 * small.sum(), [large, small, unused])
    assert sorted(found) == [0, 1] and torch.equal(found[1], torch.full((4,), 2.0))
    assert len(found[0]) < 2 * LOOKED_AT and found[0][-1] > 0.99 * factor[-1] and found[0][0] == 0
    assert large.grad is None and small.grad is None


def test_an_adapter_that_starts_at_zero_makes_no_product_of_the_weight_s_size() -> None:
    base = nn.Linear(512, 384, bias=False)
    taken = most_alive(lambda: LoraLinear.from_base(base, 4, 8.0), [base.weight])
    assert 0 < taken < base.weight.nbytes / 4


def test_the_command_needs_no_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(tmp_path)
    (tmp_path / "model" / "model.safetensors").unlink()
    model, rows = config.model.name, tmp_path / "train.jsonl"
    assert main(["plan", f"model={model}", f"data={rows}", "lora.rank=4", "--device", "cuda"]) == 0
    said = capsys.readouterr().out
    assert "training on cuda" in said and "device context" in said and "made again" in said
    assert main(["plan"]) == 2
