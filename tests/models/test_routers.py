"""Losses of routers: transformers' value over the whole step, and a gradient that no cut of the step changes."""

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from luthier.data.batch import Batch, Example, collate
from luthier.data.sharing import num_logical_tokens, share_prefixes
from luthier.errors import ConfigError
from luthier.methods.sft import SFT
from luthier.models.policy import Layout, Policy
from luthier.models.routers import Routers, multiplicity, watch_routers
from luthier.optim.gradients import Gradients
from luthier.parallel.cluster import Cluster
from luthier.training.learner import Learner
from method_rows import apart, judged_rows
from thread_ranks import on_ranks
from tiny_models import build, tiny_llama

BALANCE, Z = 0.7, 0.05
balance_of: Any = load_balancing_loss_func
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "mlp_only_layers": [0],
        "num_hidden_layers": 3,
    },
}
LOAD = torch.tensor([0.9, 0.1, 0.4, 0.6], dtype=torch.float64)
"""Of a step before, for those that need one."""


def model_of(family: str, **overrides: Any) -> PreTrainedModel:
    return build(family, **FAMILIES[family], **overrides)


@cache
def learner_of(family: str, rank: int = 0, layout: Layout = "packed", balance: float = BALANCE) -> Learner:
    policy = Policy(model_of(family), layout)
    policy.routers = watch_routers(policy.model, balance, Z if balance else 0.0)
    return Learner(policy, SFT(), Gradients(list(policy.parameters())), torch.device("cpu"))


def step_of(
    learner: Learner, micro_batches: list[Batch], load_E: Tensor | None = LOAD, cluster: Cluster | None = None
) -> tuple[dict[str, float], list[Tensor]]:
    cluster, routers = cluster or Cluster(), learner.policy.routers
    learner.scorer.cluster = cluster
    if routers is not None:
        routers.load_E = load_E
    for parameter in learner.policy.parameters():
        parameter.grad = None
    learner.gradients = Gradients(list(learner.policy.parameters()))  # they remember what the ranks agreed on
    units = cluster.sum([sum(map(SFT().count, micro_batches))])[0]
    totals = cluster.sum(learner(micro_batches, units).tolist())
    learner.gradients.collect(cluster.sum)
    cluster.sum_in_place(learner.gradients.tensors())
    told = {} if routers is None else routers.end(cluster.sum)
    gradients = [tensor.clone() for tensor in learner.gradients.tensors()]
    return {"loss": totals[0] / units, **told}, gradients


def check_same(found: Any, expected: Any) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-4)
    for gradient, true in zip(found[1], expected[1], strict=True):
        assert float((gradient - true).norm()) <= 2e-4 * float(true.norm()) + 1e-7


def rows() -> list[Example]:
    return judged_rows("pair", 6)


def by_autograd(family: str, batch: Batch, load_E: Tensor) -> tuple[dict[str, float], dict[str, Tensor]]:
    """The losses of the routers by transformers' own record of their logits, one document at a time."""
    model = model_of(family)
    starts = batch.starts_S1.tolist()
    layers: list[tuple[Tensor, ...]] = []
    for path in batch.paths():
        ids = torch.cat([batch.tokens_T[starts[s] : starts[s + 1]] for s in path])
        layers.append(model(input_ids=ids[None], output_router_logits=True).router_logits)
    logits = tuple(torch.cat(documents) for documents in zip(*layers, strict=True))
    value = balance_of(logits, 4, 2)
    every = torch.cat(logits)
    squares = every.logsumexp(-1).square().mean()
    surrogate = 4 * (load_E.float() * every.softmax(-1).mean(0)).sum()
    (BALANCE * surrogate + Z * squares).backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"aux_loss": float(value.detach()), "router_z_loss": float(squares.detach())}, gradients


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("layout", ["packed", "rows"])
def test_value_and_gradient_are_those_of_transformers_over_the_whole_step(
    family: str, layout: Layout
) -> None:
    learner, plain = learner_of(family, layout=layout), learner_of(family, layout=layout, balance=0.0)
    assert plain.policy.routers is None
    batches = [collate(rows()[:4]), collate(rows()[4:])]
    (values, gradients), (bare, without) = (step_of(one, batches) for one in (learner, plain))
    truth, of_routers = by_autograd(family, collate(rows()), LOAD)
    assert values.pop("loss") == pytest.approx(bare["loss"], rel=1e-5)  # the method's own
    assert values == pytest.approx(truth, rel=1e-4)
    names = [n for n, _ in learner.policy.model.named_parameters()]
    for name, found, other in zip(names, gradients, without, strict=True):
        wanted = of_routers.get(name, torch.zeros_like(found))
        torch.testing.assert_close(found - other, wanted, rtol=1e-3, atol=2e-5)
    assert float(max(g.norm() for g in of_routers.values())) > 1e-2


def test_with_the_load_of_the_step_itself_it_is_the_gradient_of_transformers_loss() -> None:
    """Its own f has no gradient, so two steps on the same rows show it."""
    learner, batch = learner_of("mixtral"), collate(rows())
    step_of(learner, [batch])
    assert learner.policy.routers is not None and learner.policy.routers.load_E is not None
    own = learner.policy.routers.load_E
    assert float(own.sum()) == pytest.approx(2.0)
    logits = torch.randn(1, 4, requires_grad=True)
    f = torch.zeros(4).index_fill(0, logits.topk(2).indices[0], 1.0)
    (mine,) = torch.autograd.grad(4 * (f * logits.softmax(-1)[0]).sum(), logits, retain_graph=True)
    (theirs,) = torch.autograd.grad(balance_of((logits,), 4, 2), logits)
    torch.testing.assert_close(mine, theirs)


def test_split_order_layout_padding_and_shared_prompts_change_nothing() -> None:
    learner, made = learner_of("mixtral"), rows()
    whole = step_of(learner, [collate(made)])
    check_same(step_of(learner, [collate([row]) for row in made[::-1]]), whole)
    check_same(step_of(learner, [collate([apart(row) for row in made])]), whole)
    check_same(step_of(learner, [collate(made[:2]), share_prefixes(collate(made[2:]))]), whole)
    batch = collate(made[2:])
    padded = batch.padded(len(batch.tokens_T) + 7, len(batch.target_N) + 3, len(batch.parent_S) + 3)
    check_same(step_of(learner, [padded, collate(made[:2])]), whole)


def test_three_ranks_one_of_them_idle_take_the_same_step_as_one() -> None:
    made = rows()
    shares = [[collate(made[:1]), collate(made[1:3])], [], [collate(made[3:])]]
    learners = [learner_of("qwen3_moe", rank) for rank in range(3)]
    whole = step_of(learners[0], [collate(made)])
    for found in on_ranks(
        3, lambda cluster: step_of(learners[cluster.rank], shares[cluster.rank], LOAD, cluster)
    ):
        check_same(found, whole)


def test_the_first_step_has_a_value_and_no_gradient_of_the_balance() -> None:
    learner, batch = learner_of("mixtral"), collate(rows())
    assert learner.policy.routers is not None
    even = torch.full((4,), 0.5, dtype=torch.float64)
    check_same(step_of(learner, [batch], None), step_of(learner, [batch], even))


def test_tokens_count_as_often_as_documents_hold_them() -> None:
    batch = share_prefixes(collate(rows()))
    padded = batch.padded(len(batch.tokens_T) + 5, len(batch.target_N), len(batch.parent_S) + 2)
    assert float(multiplicity(padded).sum()) == num_logical_tokens(padded) > batch.num_tokens


def test_what_is_asked_for_comes_from_the_model_unless_it_is_said() -> None:
    quiet = model_of("mixtral")
    asking = model_of("mixtral", output_router_logits=True, router_aux_loss_coef=0.3)
    assert watch_routers(quiet, None, 0.0) is None and watch_routers(asking, 0.0, 0.0) is None
    found = watch_routers(asking, None, 0.0)
    assert isinstance(found, Routers) and (found.balance, found.number) == (0.3, 2)
    assert watch_routers(tiny_llama(), None, 0.0) is None
    with pytest.raises(ConfigError, match="has no routers"):
        watch_routers(tiny_llama(), 0.01, 0.0)
