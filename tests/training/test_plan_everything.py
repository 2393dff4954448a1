"""A plan works for every way to tune, every scheme and every optimizer there is, and for stored models; by contract."""

from pathlib import Path
from typing import Any

import pytest
from torch import nn
from transformers import AutoConfig

import luthier.kernels.quant
import luthier.models.tuning
import luthier.optim
from config_trainers import trainer_of
from luthier.config.plugins import describe
from luthier.models.quantised.load import quantised
from luthier.plan.memory import Sizes, peak_of
from luthier.training.sketch import sketch
from packed_models import SAMPLES, SIZES, store_as
from tiny_models import tiny_llama, tiny_smollm
from tiny_runs import tiny_config

WAYS, SCHEMES, OPTIMIZERS = (
    sorted(describe(folder)) for folder in (luthier.models.tuning, luthier.kernels.quant, luthier.optim)
)
NEEDED: dict[str, dict[str, Any]] = {"weights": {"train": ["mlp"]}, "expand": {"blocks": 1}}
"""What a way cannot be without."""
FORMATS = sorted({sample.partition(" ")[0] for sample in SAMPLES})


def sizes_of(folder: Path, **changes: Any) -> Sizes:
    drawn = sketch(tiny_config(folder, **{"eval": ..., "data": {"eval_path": None}, **changes}))
    assert peak_of(drawn.sizes(), 64).total > 0
    return drawn.fixed


def trained_now(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_tune_is_planned_as_it_runs(way: str, tmp_path: Path) -> None:
    changes = {
        "lora": ...,
        "tune": {"name": way, **NEEDED.get(way, {})},
        "eval": ...,
        "data": {"eval_path": None},
    }
    planned = sizes_of(tmp_path, **changes)
    trainer = trainer_of(tiny_config(tmp_path, **changes), tmp_path / "tokens")
    opened = sum(p.nbytes for p in trained_now(trainer.policy.model))
    assert planned.trained == opened
    trainer.step(trainer.source.step(0))
    open_now = trained_now(trainer.policy.model)  # those whose turn it is
    assert sum(4 * p.numel() for p in open_now) <= planned.gradients <= 4 * opened
    held = {id(v): v for s in trainer.optimizer.state.values() for k, v in s.items() if k != "step"}
    assert sum(value.nbytes for value in held.values()) <= planned.states


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_is_planned_to_store_and_to_round(name: str, tmp_path: Path) -> None:
    wide = tiny_llama(hidden_size=256, intermediate_size=256, head_dim=64).config
    lora = {"rank": 2, "dropout": 0.0}
    runs = ({"quant": name}, {"quant": {"name": name, "embeddings": name}}, {"qat": name}, {})
    few, fewest, rounded, plain = (
        sketch(tiny_config(tmp_path, lora=lora, **run), wide).fixed for run in runs
    )
    assert 0 < few.stored < fewest.stored and fewest.frozen < few.frozen < plain.frozen
    assert rounded.stored == 0 and rounded.frozen + rounded.trained <= plain.frozen + plain.trained
    assert rounded.decoded > 0 == plain.decoded
    assert few.num_weights == fewest.num_weights == plain.num_weights


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_is_planned(name: str, tmp_path: Path) -> None:
    for changes in ({"lora": ...}, {}):
        planned = sizes_of(tmp_path, optim={"name": name}, schedule="constant", **changes)
        assert planned.states >= 0 and planned.update > 0 and planned.gradients > 0


def test_updates_within_the_backward_pass_need_one_gradient_at_a_time(tmp_path: Path) -> None:
    changes = {
        "lora": ...,
        "train": {"optimizer_in_backward": True, "max_grad_norm": None, "tokens_per_step": 256},
    }
    after, within = sizes_of(tmp_path, lora=...), sizes_of(tmp_path, **changes)
    model = trainer_of(
        tiny_config(tmp_path, lora=..., eval=..., data={"eval_path": None}), tmp_path / "t"
    ).policy
    assert after.gradients == sum(4 * p.numel() for p in model.parameters())
    assert within.gradients == max(4 * p.numel() for p in model.parameters())


@pytest.mark.parametrize("sample", [next(s for s in SAMPLES if s.startswith(kind)) for kind in FORMATS])
def test_every_format_of_others_is_planned_by_its_files(sample: str, tmp_path: Path) -> None:
    changes = {"lora": {"dropout": 0.0}, "eval": ..., "data": {"eval_path": None}}
    tiny_config(tmp_path)
    sizes = {key: size for key, size in SIZES.items() if key != "tie_word_embeddings"}
    vocabulary = AutoConfig.from_pretrained(tmp_path / "model").vocab_size
    tiny_smollm(vocab_size=vocabulary, max_position_embeddings=512, **sizes).save_pretrained(
        tmp_path / "model"
    )
    plain = sizes_of(tmp_path, **changes)
    store_as(tmp_path / "model", sample)
    planned = sizes_of(tmp_path, **changes)
    model = trainer_of(tiny_config(tmp_path, **changes), tmp_path / "tokens").policy.model
    stored = sum(module.stored.num_bytes for module in quantised(model).values())
    assert len(quantised(model)) == 14 and 0.5 * stored < planned.stored < 2 * stored
    assert planned.frozen < plain.frozen and planned.num_weights == plain.num_weights
