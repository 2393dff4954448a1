"""Weights with settings of their own, and first steps in which only the rows of new tokens move."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import luthier
from luthier.config.optim_section import GroupSection
from luthier.config.tree import Config
from luthier.errors import ConfigError
from luthier.models.load import load_model
from luthier.optim.adamw import AdamW
from luthier.runs.folder import RunFolder
from luthier.training.weights import rules_of_groups
from tiny_models import tiny_llama, tiny_smollm
from tiny_runs import tiny_config


def groups_of(model: nn.Module, *sections: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Peak learning rate and weight decay of each weight."""
    named = list(model.named_parameters())
    for _, parameter in named:
        parameter.grad_dtype = torch.float32  # type: ignore[attr-defined]
    rules = rules_of_groups([GroupSection(**one) for one in sections], named, model)
    built = AdamW(weight_decay=0.1).build(named, 1.0, rules)
    found = {id(p): (g["lr"], g["weight_decay"]) for g in built.param_groups for p in g["params"]}
    assert len(found) == len(named) == sum(len(g["params"]) for g in built.param_groups)
    return {name: found[id(p)] for name, p in named}


def test_biases_and_norms_do_not_decay_unless_a_group_says_so() -> None:
    plain = groups_of(tiny_llama(attention_bias=True))
    assert {name for name, (_, decay) in plain.items() if not decay} == {
        name for name in plain if "norm" in name or "bias" in name
    }
    decaying = groups_of(tiny_llama(), {"match": ["norm"], "weight_decay": 0.3})
    assert decaying["model.norm.weight"] == (1.0, 0.3) and decaying["lm_head.weight"] == (1.0, 0.1)


def test_embeddings_and_head_by_word_and_others_by_name_the_first_group_wins() -> None:
    found = groups_of(
        tiny_llama(),
        {"match": ["embeddings", "head"], "lr": 0.5},
        {"match": [r"layers\.0\.", "embed"], "lr": 0.25, "weight_decay": 0.0},
    )
    assert found["model.embed_tokens.weight"] == found["lm_head.weight"] == (0.5, 0.1)
    assert found["model.layers.0.mlp.up_proj.weight"] == (0.25, 0.0)
    assert found["model.layers.1.mlp.up_proj.weight"] == (1.0, 0.1)
    assert groups_of(tiny_smollm(), {"match": ["head"], "lr": 0.5})["model.embed_tokens.weight"] == (0.5, 0.1)


def test_a_group_that_means_nothing_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"optim\.groups\[0\]\.match has 'embed_in'"):
        groups_of(tiny_llama(), {"match": ["embed_in"]})
    with pytest.raises(ConfigError, match="no regular expression"):
        luthier.check({"model": "m", "data": "d", "optim": {"groups": [{"match": "("}]}})


def weights_after(config: Config) -> dict[str, torch.Tensor]:
    run = luthier.train(config, say=lambda text: None).folder
    model = load_model(run / "model", torch.float32, torch.device("cpu"))
    return {name: p.detach() for name, p in model.named_parameters()}


def short(folder: Path, name: str, **changes: Any) -> Config:
    plain = {
        "lora": ...,
        "eval": {"every": None, "samples": 0},
        "checkpoint": {"every": None},
        "data": {"eval_path": None},
    }
    return tiny_config(folder, name, **{**plain, **changes})


def test_a_group_with_rate_zero_stays_and_the_others_move(tmp_path: Path) -> None:
    groups = [{"match": "embeddings", "lr": 0.0}]
    optim = {"lr": 1e-2, "weight_decay": 0.1, "groups": groups}
    after = weights_after(short(tmp_path, "groups", optim=optim, train={"steps": 3}))
    before = dict(load_model(tmp_path / "model", torch.float32, torch.device("cpu")).named_parameters())
    same = {name for name, weight in after.items() if torch.equal(weight, before[name])}
    assert same == {"model.embed_tokens.weight"}
    start = {
        "start": str(tmp_path / "runs" / "groups")
    }  # other groups: the optimizer's state finds its weights
    more = short(tmp_path, "more", optim={"lr": 1e-2}, train={"steps": 4}, checkpoint=start)
    moved = weights_after(more)
    assert not any(torch.equal(moved[name], after[name]) for name in after)
    names = torch.load(RunFolder(tmp_path / "runs" / "more").checkpoint(4) / "trainer.pt")["names"]
    assert sorted(names) == sorted(f"model.{name}" for name in before) or len(names) == len(before)


def test_new_tokens_move_alone_at_first(tmp_path: Path) -> None:
    def run(name: str, steps: int) -> dict[str, torch.Tensor]:
        config = short(
            tmp_path,
            name,
            model={"name": str(tmp_path / "model"), "new_tokens": ["cat", "dog"]},
            optim={"lr": 1e-2, "weight_decay": 0.1},
            train={"steps": steps, "new_token_steps": 2},
        )
        return weights_after(config)

    short(tmp_path, "none")  # makes the model
    before = dict(load_model(tmp_path / "model", torch.float32, torch.device("cpu")).named_parameters())
    rows = before["model.embed_tokens.weight"].shape[0]
    for steps, moves in ((2, False), (4, True)):
        after = run(f"first-{steps}", steps)
        others = [name for name in before if name != "model.embed_tokens.weight"]
        assert all(torch.equal(after[name], before[name]) is not moves for name in others)
        table = after["model.embed_tokens.weight"]
        assert torch.equal(table[:rows], before["model.embed_tokens.weight"]) is not moves
        assert not torch.equal(table[rows], table[rows + 1])  # they started alike


def test_new_token_steps_need_new_tokens() -> None:
    with pytest.raises(ConfigError, match=r"name them in model\.new_tokens"):
        luthier.check({"model": "m", "data": "d", "train": {"new_token_steps": 3}})
