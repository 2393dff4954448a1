"""Smoothed targets, z-loss and the entropy gate are those of plain transformers logits, in every layout."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import luthier.methods
from luthier.config.plugins import load_plugin
from luthier.data.batch import Batch, collate
from luthier.evaluate.loss import evaluate_loss
from luthier.evaluate.scoring import Scorer
from luthier.models.policy import Layout, Policy
from luthier.models.tripwire import choose_policy
from luthier.parallel.cluster import Cluster
from tiny_models import tiny_granite, tiny_llama
from training_parts import chat_rows

CASES: list[tuple[str, dict[str, Any]]] = [
    ("sft", {"label_smoothing": 0.2}),
    ("sft", {"z_loss": 0.03}),
    ("sft", {"label_smoothing": 0.1, "z_loss": 0.01, "token_metrics": True}),
    ("eaft", {"alpha": 0.5}),
]


def definition(name: str, options: dict[str, Any], logits_NV: torch.Tensor, batch: Batch) -> torch.Tensor:
    """By torch's own functions from all logits."""
    w, e = batch.weight_N, options.get("label_smoothing", 0.0)
    nll_N = F.cross_entropy(logits_NV, batch.target_N, reduction="none", label_smoothing=e)
    if name == "sft":
        return (w * (nll_N + options.get("z_loss", 0.0) * logits_NV.logsumexp(-1) ** 2)).sum()
    likeliest_NK = logits_NV.detach().sort(-1, descending=True).values[:, :20].softmax(-1)
    entropy_N = torch.special.entr(likeliest_NK).sum(-1)
    return (w * (entropy_N / math.log(20)) ** options["alpha"] * nll_N).sum()


@pytest.mark.parametrize("layout", ["packed", "rows", "plain"])
@pytest.mark.parametrize(
    "make", [tiny_llama, lambda: tiny_granite(logits_scaling=4.0)], ids=["llama", "granite"]
)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_loss_and_gradients_are_those_of_plain_logits(
    name: str, options: dict[str, Any], make: Any, layout: Layout
) -> None:
    model, rows = make().double(), chat_rows(4)
    batch = collate(rows.examples)
    logits = [model(torch.tensor(r.segments[0].ids).long()[None]).logits[0, :-1] for r in rows.examples]
    learned = [torch.tensor(r.segments[0].weights)[1:] > 0 for r in rows.examples]
    truth = definition(
        name, options, torch.cat([x[keep] for x, keep in zip(logits, learned, strict=True)]), batch
    )
    weights = [p for p in model.parameters() if p.requires_grad]
    expected = torch.autograd.grad(truth, weights)
    chosen = choose_policy(model, packing=None if layout == "packed" else False).policy
    policy = chosen if layout != "plain" else Policy(model, "plain")
    assert policy.layout == layout
    method = load_plugin(luthier.methods, name)(**options)
    loss, _ = method.loss(Scorer(policy, method, None, Cluster())(batch), batch)
    torch.testing.assert_close(loss, truth)
    for gradient, true in zip(torch.autograd.grad(loss, weights), expected, strict=True):
        torch.testing.assert_close(gradient, true, rtol=1e-6, atol=1e-9)


def test_metrics_are_reported_only_where_they_are_asked_for() -> None:
    model, rows = tiny_llama(), chat_rows(5)
    logits = [model(torch.tensor(r.segments[0].ids).long()[None]).logits[0, :-1] for r in rows.examples]
    policy, batch = choose_policy(model).policy, collate(rows.examples)

    def measured(**options: Any) -> dict[str, float]:
        method = load_plugin(luthier.methods, "sft")(**options)
        return evaluate_loss(policy, method, [batch], Cluster(), torch.device("cpu"))

    assert measured().keys() == {"loss", "perplexity"}
    found = measured(token_metrics=True)
    learned = [torch.tensor(r.segments[0].weights)[1:] > 0 for r in rows.examples]
    logits_NV = torch.cat([x[keep] for x, keep in zip(logits, learned, strict=True)]).detach()
    right = (logits_NV.argmax(-1) == batch.target_N).float().mean()
    assert found["mean_token_accuracy"] == pytest.approx(float(right))
    entropy = torch.distributions.Categorical(logits=logits_NV).entropy().mean()
    assert found["entropy"] == pytest.approx(float(entropy), rel=1e-5)
    assert found["loss"] == pytest.approx(measured()["loss"])


def test_a_gate_of_no_power_is_sft() -> None:
    policy, batch = choose_policy(tiny_llama()).policy, collate(chat_rows(3).examples)
    losses = []
    for name, options in (("eaft", {"alpha": 0.0}), ("sft", {})):
        method = load_plugin(luthier.methods, name)(**options)
        losses.append(method.loss(Scorer(policy, method, None, Cluster())(batch), batch)[0])
    assert losses[0].item() == pytest.approx(losses[1].item())
