"""Selective precision: layers that lose most are found, and leaving them is worth more than leaving others."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from luthier.data.batch import Batch
from luthier.errors import ConfigError
from luthier.kernels.divergence import Divergence
from luthier.kernels.quant.nf4 import NF4
from luthier.models.policy import Policy
from luthier.models.quantised.load import Quantisation, names_to_store
from luthier.models.quantised.precision import (
    Damage,
    budget_bytes,
    choose,
    mean_loss,
    measure,
    stored_in_place,
)
from luthier.models.tripwire import probe
from tiny_models import tiny_llama

PLANTED = ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.up_proj")
NF = Quantisation(NF4(block=32), "nf4")


def policy_with_outliers() -> tuple[Policy, list[Batch]]:
    """Two layers in which a single large weight of each row, of an input that is always zero, spoils the scale of all
    others."""
    model = tiny_llama(num_hidden_layers=3)
    for name, norm in zip(PLANTED, ("0.input", "1.post_attention"), strict=True):
        model.get_parameter(f"{name}.weight").data[:, 3] *= 100
        model.get_parameter(f"model.layers.{norm}_layernorm.weight").data[3] = 0
    policy = Policy(model)
    return policy, [probe(model)]


def divergence(policy: Policy, batches: list[Batch], stored: list[str]) -> float:
    """From the plain model, with these layers stored."""
    total = 0.0
    with torch.no_grad():
        for batch in batches:
            teacher = policy.as_teacher(batch)
            with stored_in_place(policy.model, stored, NF.scheme):
                total += float(policy.divergence(batch, teacher, Divergence())[1].sum())
    return total


def test_the_layers_that_are_left_beat_random_ones_of_the_same_size() -> None:
    policy, batches = policy_with_outliers()
    before = {name: p.detach().clone() for name, p in policy.model.named_parameters()}
    damages = measure(policy, NF, batches)
    assert [one.name for one in damages] == [
        name for name, _ in policy.model.named_modules() if name in names_to_store(policy.model, NF)
    ]
    assert all(torch.equal(p, before[name]) for name, p in policy.model.named_parameters())
    size = sum(one.cost for one in damages if one.name in PLANTED)
    left = choose(damages, sum(one.stored_bytes for one in damages) + size)
    assert set(PLANTED) <= set(left)
    names, costs = [one.name for one in damages], {one.name: one.cost for one in damages}
    ours = divergence(policy, batches, [name for name in names if name not in left])
    draw = random.Random(0)
    others = []
    for _ in range(12):
        room, kept = size, set()
        for name in draw.sample(names, len(names)):
            if costs[name] <= room:
                kept.add(name)
                room -= costs[name]
        others.append(
            (len(kept & set(PLANTED)), divergence(policy, batches, [n for n in names if n not in kept]))
        )
    assert all(ours < other for planted, other in others if planted < len(PLANTED))
    assert ours < 0.5 * sum(other for _, other in others) / len(others)


def test_damage_is_the_divergence_with_that_layer_alone() -> None:
    policy, batches = policy_with_outliers()
    number = sum(len(batch.target_N) for batch in batches)
    for one in measure(policy, NF, batches)[:3]:
        assert one.divergence == pytest.approx(divergence(policy, batches, [one.name]) / number, rel=1e-4)
        assert one.divergence > 0 and one.stored_bytes < one.plain_bytes


def test_what_a_config_leaves_is_measured_anew() -> None:
    policy, batches = policy_with_outliers()
    skipping = replace(NF, skip=("mlp",))
    assert len(measure(policy, skipping, batches)) == len(measure(policy, NF, batches)) == 21


def test_memory_goes_where_it_prevents_most() -> None:
    def damage(name: str, divergence: float, size: int) -> Damage:
        return Damage(name, divergence, size, size // 2, 2 * size)

    found = [damage("a", 1.0, 100), damage("b", 5.0, 1000), damage("c", 0.9, 60), damage("d", 0.0, 2)]
    stored = sum(one.stored_bytes for one in found)
    assert choose(found, stored) == []
    assert choose(found, stored + 90) == ["c"]
    assert choose(found, stored + 240) == ["a", "c"]
    assert choose(found, 10**6) == ["a", "b", "c"]  # what loses nothing stays stored
    assert budget_bytes("0.75", found) == int(0.75 * 1162)
    assert budget_bytes("3 GB", found) == 3 * 10**9 and budget_bytes("2MiB", found) == 2**21
    assert budget_bytes(None, found) == stored + stored // 10
    for text, said in (("0.2", "linear layers take"), ("much", "give bytes a weight"), ("-1", "give bytes")):
        with pytest.raises(ConfigError, match=said):
            budget_bytes(text, found)


def test_loss_is_of_the_learned_tokens() -> None:
    policy, (batch,) = policy_with_outliers()
    learned = batch.weight_N != 0
    with torch.no_grad():
        assert mean_loss(policy, [batch]) == pytest.approx(-float(policy(batch)[learned].mean()), rel=1e-5)


def test_weights_come_back_after_an_error(tmp_path: Path) -> None:
    policy, _ = policy_with_outliers()
    before = policy.model.get_parameter(f"{PLANTED[0]}.weight").clone()
    with pytest.raises(RuntimeError), torch.no_grad(), stored_in_place(policy.model, PLANTED, NF.scheme):
        raise RuntimeError
    assert torch.equal(policy.model.get_parameter(f"{PLANTED[0]}.weight"), before)
