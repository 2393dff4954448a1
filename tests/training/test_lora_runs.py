"""Runs with adapters of every kind: they learn, resume bit for bit, go on elsewhere, and say what runs how."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import luthier
from luthier.config.lora_section import known_inits
from luthier.config.tree import Config
from luthier.errors import ConfigError
from luthier.models.adapter_plan import WEIGHTS_NAME
from luthier.models.inference import load_for_inference
from luthier.models.lora import adapter_names
from luthier.runs.metrics import read_metrics
from resuming import same_weights, stopped_and_resumed
from tiny_runs import save_tiny_model, tiny_config, write_chats

VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"init": name} for name in known_inits() if name != "kaiming"},
    "dora, stored": {"dora": True, "init": "pissa"},
    "dora": {"dora": True, "init": "pissa"},
    "frozen a": {"train_a": False, "plus_ratio": 4.0},
    "ranks": {"ranks": {"down_proj": 2}, "layers": "1-"},
    "eva ranks": {"init": "eva", "eva_rho": 2.0},
    "two": {"adapters": {"style": {"rank": 4, "target": ["q_proj", "v_proj"]}}},
    "restarts": {"restart": {"times": 2, "every": 2, "warmup": 1}},
    "embeddings": {"dropout": 0.0, "target": ["embed_tokens", "lm_head", "q_proj"]},
}
STORED = ("loftq", "dora, stored")
"""Those beside a base in few bits."""
PLAIN: dict[str, Any] = {"rank": 16, "dropout": 0.0}
"""The defaults, in the place of what tiny_config has."""
SHORT: dict[str, Any] = {
    "train": {"epochs": 1, "steps": 6, "tokens_per_step": 512, "tokens_per_micro_batch": 256},
    "eval": {"every": None, "samples": 0},
    "checkpoint": {"every": None},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lora")


def config_of(folder: Path, name: str, lora: dict[str, Any], **changes: Any) -> Config:
    return tiny_config(folder, name, **{**SHORT, "lora": lora, **changes})


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / WEIGHTS_NAME)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_learns_and_resumes_bit_for_bit(variant: str, folder: Path) -> None:
    lora = {"rank": 4, "dropout": 0.1, **VARIANTS[variant]}
    said: list[str] = []
    changes = {"quant": "nf4"} if variant in STORED else {}
    name = re.sub(r"\W+", "-", variant)
    whole = luthier.train(config_of(folder, f"{name}-whole", lora, **changes), say=said.append)
    rows = read_metrics(whole.folder / "metrics.jsonl")
    losses = [row["loss"] for row in rows if row["kind"] == "train" and "loss" in row]
    assert losses[-1] < losses[0] - 0.05
    table = [line for line in "\n".join(said).splitlines() if "rank " in line and "alpha" in line]
    plain = ("lm_head", "embed_tokens")
    assert table and all("; fused: " in line for line in table if not line.strip().startswith(plain))
    assert same_weights(whole, stopped_and_resumed(config_of(folder, f"{name}-stopped", lora, **changes), 3))


@pytest.mark.parametrize(
    ("kind", "lora"),
    [
        ("qwen2", {"bias": "lora_only"}),
        ("qwen2", {"bias": "all", "target": ["q_proj"]}),
        ("qwen3_moe", {"experts": True, "dropout": 0.0, "target": ["q_proj", "v_proj"]}),
    ],
    ids=["bias", "all biases", "experts"],
)
def test_biases_and_experts_resume_bit_for_bit(kind: str, lora: dict[str, Any], tmp_path: Path) -> None:
    shape = {"num_experts": 4, "moe_intermediate_size": 16, "num_experts_per_tok": 2}
    save_tiny_model(tmp_path / "model", kind=kind, **(shape if kind == "qwen3_moe" else {}))
    write_chats(tmp_path / "train.jsonl")
    write_chats(tmp_path / "test.jsonl", 10, seed=1)
    lora = {"rank": 4, "dropout": 0.1, **lora}
    whole = luthier.train(config_of(tmp_path, "whole", lora), say=lambda line: None)
    learned = [name for name in tensors(whole.trained) if name.endswith(".bias") or ".experts." in name]
    assert learned
    assert same_weights(whole, stopped_and_resumed(config_of(tmp_path, "stopped", lora), 3))


def test_a_run_goes_on_with_an_adapter(folder: Path) -> None:
    first = luthier.train(
        config_of(folder, "first", {**PLAIN, "rank": 4, "init": "pissa"}), say=lambda line: None
    )
    said: list[str] = []
    for start in (first.folder, first.trained):
        config = config_of(folder, f"on-{start.name}", {**PLAIN, "start": str(start)}, optim={"lr": 0.0})
        second = luthier.train(config, say=said.append)
        before, after = tensors(first.trained), tensors(second.trained)
        assert all(
            torch.equal(before[name], after[name]) for name in before
        )  # nothing learned: it is the same
    assert any("going on with the adapter of" in line for line in said)


def test_b_learns_faster_where_asked(folder: Path) -> None:
    """One step of Adam moves every number by the learning rate."""
    lora = {"rank": 4, "plus_ratio": 8.0, "init": "orthogonal", "target": ["q_proj"]}
    steps = {
        "train": {"steps": 1, "tokens_per_step": 512},
        "schedule": {"name": "constant", "warmup_steps": 0},
    }
    moved = {}
    for lr in (0.0, 1e-3):
        run = luthier.train(
            config_of(folder, f"plus-{lr:g}", lora, optim={"lr": lr}, **steps), say=lambda line: None
        )
        moved[lr] = tensors(run.trained)
    for name, tensor in moved[1e-3].items():
        expected = 8e-3 if "lora_B" in name else 1e-3
        assert float((tensor - moved[0.0][name]).abs().median()) == pytest.approx(expected, rel=0.02), name


def test_a_frozen_a_stays(folder: Path) -> None:
    run = luthier.train(config_of(folder, "fa", {"rank": 4, "train_a": False}), say=lambda line: None)
    other = luthier.train(
        config_of(folder, "fa-0", {"rank": 4, "train_a": False}, optim={"lr": 0.0}), say=lambda line: None
    )
    mine, theirs = tensors(run.trained), tensors(other.trained)
    for name in mine:
        assert torch.equal(mine[name], theirs[name]) == ("lora_A" in name), name


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"restart": {}, "init": "pissa"}, "lora.init is given, and lora.restart"),
        ({"adapters": {"a": {}}, "dora": True}, "lora.dora is given"),
        ({"adapters": {"a/b": {}}}, "letters, digits"),
        ({"adapters": {"a": {"layers": "x"}}}, "lora.adapters.a.layers"),
        ({"adapters": {"a": {"start": ".", "rank": 3}}}, "lora.adapters.a.rank is given"),
        ({"eva_rho": 2.0}, "lora.init is kaiming"),
        ({"experts": True, "dropout": 0.1}, "stacked experts cannot have"),
        ({"bias": "some"}, "lora.bias"),
        ({"init": "pisa"}, "did you mean pissa"),
        ({"layers": "4..8"}, "write a range"),
        ({"init": "loftq"}, r"lora\.init is loftq.*add the section quant"),
        ({"ranks": {"(": 4}}, "no regular expression"),
        ({**PLAIN, "start": ".", "rank": 8}, "lora.rank is given"),
    ],
)
def test_settings_that_cannot_work_are_told(lora: dict[str, Any], message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(folder, "wrong", lora)


def test_a_start_without_an_adapter_is_told(folder: Path) -> None:
    with pytest.raises(ConfigError, match="Name the folder of an adapter"):
        luthier.train(
            config_of(folder, "empty", {**PLAIN, "start": str(folder / "model")}), say=lambda line: None
        )


def test_what_was_saved_says_twice_the_rank(folder: Path) -> None:
    run = luthier.train(config_of(folder, "twice", {"rank": 4, "init": "olora"}), say=lambda line: None)
    settings = json.loads((run.trained / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"], settings["use_dora"]) == (8, 16, False)


def test_several_are_saved_apart_and_one_may_be_frozen(folder: Path) -> None:
    """A frozen one that there is stays to the bit, lies in a folder of its own, and is merged with the other."""
    style = luthier.train(config_of(folder, "style", {"rank": 2}), say=lambda line: None)
    lora = {"rank": 4, "adapters": {"style": {"start": str(style.folder), "train": False}}}
    said: list[str] = []
    run = luthier.train(config_of(folder, "with-style", lora), say=said.append)
    before, after = tensors(style.trained), tensors(run.trained / "style")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert any("adapter style on" in line and "frozen" in line for line in said)
    assert "style: rank 2, alpha 4" in "\n".join(said) and "A and B frozen" in "\n".join(said)
    loaded = load_for_inference(str(run.folder), device="cpu")
    assert adapter_names(loaded.model) == ["", "style"]
    alone = load_for_inference(str(run.trained / "style"), device="cpu")
    assert adapter_names(alone.model) == [""]


def test_restarts_keep_what_was_learned_and_begin_anew(folder: Path) -> None:
    lora = {"rank": 4, "restart": {"times": 2, "every": 2, "warmup": 1}}
    said: list[str] = []
    run = luthier.train(config_of(folder, "restarted", lora), say=said.append)
    assert any("adapters begin anew after step 2, 4" in line for line in said)
    settings = json.loads((run.trained / "adapter_config.json").read_text())
    assert (settings["r"], settings["lora_alpha"]) == (12, 24)
    name = next(name for name in tensors(run.trained) if "lora_B" in name)
    b_MR = tensors(run.trained)[name]
    assert all(b_MR[:, start : start + 4].any() for start in (0, 4, 8))
    with pytest.raises(ConfigError, match=r"Lower lora.restart.times"):
        luthier.train(
            config_of(folder, "too-short", {"rank": 4, "restart": {"every": 9}}), say=lambda line: None
        )


def test_a_checkpoint_of_another_adapter_is_refused_with_what_differs(folder: Path) -> None:
    first = luthier.train(
        config_of(folder, "trunk", {"rank": 4}, checkpoint={"every": 3}), say=lambda line: None
    )
    config = config_of(
        folder, "branch", {"rank": 8, "target": ["q_proj"]}, checkpoint={"start": str(first.folder)}
    )
    with pytest.raises(ConfigError, match=r"rank 4 there, 8 here.*lora.start"):
        luthier.train(config, say=lambda line: None)
