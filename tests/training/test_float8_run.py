"""Runs of all weights whose products are of 8-bit floats: they learn as exact ones do, and go on exactly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from luthier.config.tree import Config
from luthier.errors import ConfigError, ModelError
from luthier.models.float8 import Float8Linear, multiply_float8
from luthier.models.inference import load_for_inference
from luthier.runs.metrics import read_metrics, series
from luthier.training.run import run
from resuming import same_weights, stopped_and_resumed
from tiny_models import tiny_llama
from tiny_runs import tiny_config

IDS = torch.arange(4, 40)[None]


def config(folder: Path, name: str, products: str | None = "fp8", **changes: Any) -> Config:
    model = {"name": str(folder / "model"), **({"products": products} if products else {})}
    tiny_config(folder)
    return tiny_config(folder, name, **{"model": model, "lora": ..., "optim": {"lr": 3e-3}, **changes})


def losses(folder: Path) -> torch.Tensor:
    return torch.tensor([loss for _, loss in series(read_metrics(folder / "metrics.jsonl"), "train", "loss")])


def test_a_run_learns_as_an_exact_one_and_goes_on_exactly(tmp_path: Path) -> None:
    said: list[str] = []
    whole = run(config(tmp_path, "whole"), say=said.append)
    exact = run(config(tmp_path, "exact", None), say=lambda line: None)
    assert any(line.startswith("products of 14 linear layers in 8-bit floats") for line in said)
    rounded, plain = losses(whole.folder), losses(exact.folder)
    assert rounded[-1] < rounded[0] - 0.3 and not torch.equal(rounded, plain)
    torch.testing.assert_close(rounded, plain, rtol=0.03, atol=0.03)
    assert same_weights(whole, stopped_and_resumed(config(tmp_path, "stopped")))
    trained = AutoModelForCausalLM.from_pretrained(whole.trained)
    assert torch.equal(load_for_inference(str(whole.folder)).model(IDS).logits, trained(IDS).logits)


def test_the_blocks_that_tune_leaves_closed_stay(tmp_path: Path) -> None:
    before = AutoModelForCausalLM.from_pretrained(config(tmp_path, "before").model.name).state_dict()
    result = run(config(tmp_path, "last", tune={"layers": "last 1"}), say=lambda line: None)
    after = AutoModelForCausalLM.from_pretrained(result.trained).state_dict()
    changed = {name for name in after if not torch.equal(after[name], before[name])}
    assert changed and all(".layers.1." in name or ".layers." not in name for name in changed)


def test_shapes_that_do_not_fit_stay_and_are_counted() -> None:
    model = tiny_llama(intermediate_size=40)
    assert multiply_float8(model) == "products of 8 linear layers in 8-bit floats, 6 as they are"
    kinds = {name.rpartition(".")[2] for name, one in model.named_modules() if isinstance(one, Float8Linear)}
    assert kinds == {"q_proj", "k_proj", "v_proj", "o_proj"}
    with pytest.raises(ModelError, match="a multiple of 16"):
        multiply_float8(tiny_llama(hidden_size=40, head_dim=10, intermediate_size=40))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lora": {"rank": 4}}, r"model\.products is fp8, which is for weights that are trained themselves"),
        ({"qat": "q8_0"}, r"with qat products see weights in few bits"),
    ],
)
def test_what_cannot_be_is_told(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, "wrong", **changes)
