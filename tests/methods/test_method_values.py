"""What each method says before the first update, and that its gradient is the derivative of its loss."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import luthier.methods
from head_models import LABELS
from luthier.config.load import config_from_dict
from luthier.config.plugins import load_plugin
from luthier.data.batch import Batch, Example, collate
from luthier.errors import ConfigError
from luthier.kernels.token_statistics import of_logits
from luthier.methods import _preference, _ranks, _sequences
from luthier.methods.base import Scores
from luthier.training.build import build_method
from method_rows import all_variants, judged_rows, variant_id
from method_steps import rows_of, step_of
from training_parts import rows_for

LOG2 = math.log(2)


def orders(row: Example) -> float:
    """Σ log(1 + answers that are worse): log(K!) where no two of K answers are equally good."""
    ranks = np.array(row.columns["rank"])
    return float(np.log1p((ranks[:, None] < ranks[None]).sum(1)).sum())


def ordered(row: Example) -> bool:
    """Whether any answer is better than another one."""
    return len(set(np.atleast_1d(row.columns["rank"]))) > 1


def listed(row: Example) -> float:
    """LiPO's sum over ordered pairs of a ranking whose answers stand as the data has them."""
    ranks = np.atleast_1d(row.columns["rank"])
    better, equal = ranks[:, None] < ranks[None], ranks[:, None] == ranks[None]
    gains = 2 ** ((better.sum(1) + (equal.sum(1) - 1) / 2) / max(1, len(ranks) - 1))
    discounts = 1 / np.log(2 + np.arange(len(ranks)))
    matters = np.abs(np.subtract.outer(gains, gains)) * np.abs(np.subtract.outer(discounts, discounts))
    return float((matters * better).sum()) * LOG2


FIRST: dict[str, Any] = {
    "dpo": LOG2,
    "dpo-hinge": 1.0,
    "dpo-ipo": 25.0,
    "dpo-exo_pair-0.01": -LOG2 - 0.5 * math.log(0.01 * 0.99),
    "dpo-nca_pair": 2 * LOG2,
    "dpo-robust-0.1": LOG2,
    "dpo-bco_pair": 2 * LOG2,
    "dpo-sppo_hard": 50.0,
    "dpo-aot-0.1": LOG2,
    "dpo-aot_pair": LOG2,
    "dpo-apo_zero": 1.0,
    "dpo-apo_down": 1.0,
    "dpo-discopop": 0.5 * LOG2 + 0.5,
    "dpo-sigmoid_norm": LOG2,
    "dpo-sigmoid-0.2": LOG2,
    "dpo-forward_kl": LOG2,
    "dpo-js": LOG2,
    "dpo-alpha-0.7": LOG2,
    "dpo-0.3": LOG2,
    "kto": 0.5,
    "kto-apo_zero_unpaired": 0.5,
    "kto-True": 0.5,
    "bco": LOG2,
    "dpo_ranking": lambda rows: sum(map(orders, rows)) / len(rows),
    "dpo_ranking-pairwise": lambda rows: LOG2 * sum(map(ordered, rows)) / len(rows),
    "lipo": lambda rows: sum(map(listed, rows)) / len(rows),
}
"""The loss where model and reference agree; it follows from the formula alone, and perhaps from the rows."""


def variants_by_id() -> dict[str, tuple[str, dict[str, Any]]]:
    return {variant_id(variant): variant for variant in all_variants()}


@pytest.mark.parametrize("name", FIRST)
def test_the_first_step_has_the_exact_loss(name: str) -> None:
    variant = variants_by_id()[name]
    rows = rows_of(variant)
    report, _ = step_of(variant, [collate(rows[:4]), collate(rows[4:])], moved=False)
    expected = FIRST[name](rows) if callable(FIRST[name]) else FIRST[name]
    assert report["loss"] == pytest.approx(expected, rel=1e-6)
    for metric in ("rewards/chosen", "rewards/rejected", "rewards/margins", "kl", "delta"):
        assert report.get(metric, 0.0) == 0.0  # the reference is the very same code on the very same weights


def test_every_method_with_a_reference_has_a_known_first_value() -> None:
    for method, options in all_variants():
        made = load_plugin(luthier.methods, method)(**options)
        mixed = (
            not isinstance(options.get("loss_type", ""), str) or {"desirable_weight", "wpo"} & options.keys()
        )
        assert not made.needs_reference or mixed or variant_id((method, options)) in FIRST


def test_unequal_weights_show_in_the_first_loss_of_kto() -> None:
    variant = ("kto", {"desirable_weight": 1.4, "undesirable_weight": 0.5})
    batch = collate(rows_of(variant))
    labels = batch.columns["label"][batch.columns["mismatched"] == 0]
    expected = (1.4 * float((labels == 1).sum()) + 0.5 * float((labels == 0).sum())) / (2 * len(labels))
    assert step_of(variant, [batch], moved=False)[0]["loss"] == pytest.approx(expected, rel=1e-6)


def scored(method: Any, seed: int = 0) -> tuple[Batch, Tensor, Tensor, Tensor | None]:
    """A batch of the method's rows with random log-probabilities in fp64, and what the step would tell."""
    rows = rows_for(method.reads, 5, seed)
    batch = collate([rows.example(index) for index in range(5)])
    generator = torch.Generator().manual_seed(seed)
    logp_N = -0.05 - 2 * torch.rand(len(batch.target_N), generator=generator, dtype=torch.float64)
    reference_N = -0.05 - 2 * torch.rand(len(batch.target_N), generator=generator, dtype=torch.float64)
    step = None
    if method.looks_ahead:
        step = method.statistics(method.preview(Scores(logp_N, reference_N), batch), None)
    return batch, logp_N, reference_N, step


@pytest.mark.parametrize("variant", all_variants(), ids=variant_id)
def test_the_gradient_is_the_derivative_of_the_loss(variant: tuple[str, dict[str, Any]]) -> None:
    """By finite differences in fp64. Where the loss holds something fast on purpose, so does the difference."""
    method = load_plugin(luthier.methods, variant[0])(**variant[1])
    if method.head(LABELS):
        return check_head(method)
    if variant[1].get("wpo"):
        return check_wpo(method)
    if method.needs_distribution:
        return check_distribution(method)
    batch, logp_N, reference_N, step = scored(method)
    logp_N.requires_grad_()
    if method.teacher_divergence:
        return check_teacher(method, batch, logp_N)
    if variant[0] == "dft":
        return check_dft(method, batch, logp_N)
    if "aot" in str(variant[1].get("loss_type")):
        return check_aot(method, batch, logp_N, reference_N)
    assert torch.autograd.gradcheck(
        lambda logp: method.loss(Scores(logp, reference_N, step), batch)[0], (logp_N,), eps=1e-7, atol=1e-5
    )


def check_teacher(method: Any, batch: Batch, logp_N: Tensor) -> None:
    """The same in the log-probabilities and in how far each prediction is from the teacher's."""
    divergence_N = logp_N.detach().abs().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda logp, far: method.loss(Scores(logp, divergence_N=far), batch)[0],
        (logp_N, divergence_N),
        eps=1e-7,
        atol=1e-5,
    )


def check_head(method: Any) -> None:
    """The same for a method that learns from what another head says."""
    rows = rows_for(method.reads, 5)
    batch, head = collate([rows.example(index) for index in range(5)]), method.head(LABELS)
    num = len(batch.target_N) if head.kind == "steps" else batch.num_sequences
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(num, len(head.labels) or 8, generator=generator, dtype=torch.float64)
    none = values.new_zeros(0)
    step = None
    if method.looks_ahead:
        step = method.statistics(method.preview(Scores(none, values=values), batch), None)
    values.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda each: method.loss(Scores(none, step=step, values=each), batch)[0],
        (values,),
        eps=1e-7,
        atol=1e-5,
    )


def check_distribution(method: Any) -> None:
    """With respect to logits, for what the loss knows beside the log-probabilities comes from them, too."""
    batch, _, reference_N, step = scored(method)
    logits_NV = 2 * torch.randn(len(batch.target_N), 6, dtype=torch.float64)
    target_N = batch.target_N % 6
    held = {"top_entropy": of_logits(logits_NV, target_N, ("top_entropy",))["top_entropy"]}

    def loss(logits: Tensor) -> Tensor:
        found = of_logits(logits, target_N, method.needs_distribution)
        scores = Scores(found.pop("logp"), reference_N, step, distribution=found | held)
        return method.loss(scores, batch)[0]

    assert torch.autograd.gradcheck(loss, (logits_NV.requires_grad_(),))


def check_wpo(method: Any) -> None:
    """The gradient of one pair is the weight times that of the loss without it; the weight by its definition."""
    for seed in range(4):
        batch = collate([rows_for("pair", 1, seed).example(0)])
        generator = torch.Generator().manual_seed(seed)
        logits_NV = torch.randn(len(batch.target_N), 6, generator=generator, dtype=torch.float64)
        reference_N, target_N = torch.full((len(logits_NV),), -1.5).double(), batch.target_N % 6
        p_NV, chosen_N = logits_NV.softmax(-1), batch.sequence_N == 0
        likelihood_N = p_NV.gather(1, target_N[:, None])[:, 0] / (p_NV**2).sum(-1)
        weight = likelihood_N[chosen_N].log().mean().exp() * likelihood_N[~chosen_N].log().mean().exp()
        logits_NV.requires_grad_()
        values = []
        for made in (method, replace(method, wpo=False)):
            found = of_logits(logits_NV, target_N, ("log_squares",))
            loss = made.loss(Scores(found.pop("logp"), reference_N, distribution=found), batch)[0]
            values.append((loss, torch.autograd.grad(loss, logits_NV)[0]))
        (found_loss, found_gradient), (plain_loss, plain_gradient) = values
        torch.testing.assert_close(found_loss, weight * plain_loss)
        torch.testing.assert_close(found_gradient, weight * plain_gradient)
        assert float(plain_gradient.norm()) > 1e-3


def check_dft(method: Any, batch: Batch, logp_N: Tensor) -> None:
    """d(-w·sg(p)·log p)/d log p = -w·p."""
    (gradient,) = torch.autograd.grad(method.loss(Scores(logp_N), batch)[0], logp_N)
    torch.testing.assert_close(gradient, -batch.weight_N * logp_N.detach().exp())


def check_aot(method: Any, batch: Batch, logp_N: Tensor, reference_N: Tensor) -> None:
    """The definition: sort both sets as they are, differentiate through the sorted values."""
    logp_Q, reference_Q = (_sequences.sums(value, batch) for value in (logp_N, reference_N))
    (c, r), (reference_c, reference_r) = map(_sequences.pairs, (logp_Q, reference_Q))
    first, second = (c - r, reference_c - reference_r)
    if method.loss_type == "aot_pair":
        first, second = c - reference_c, r - reference_r
    gap_P = method.beta * (first.sort().values - second.sort().values)
    truth = _preference.logistic(gap_P, method.label_smoothing).sum()
    step = method.statistics(method.preview(Scores(logp_N.detach(), reference_N), batch), None)
    found = method.loss(Scores(logp_N, reference_N, step), batch)[0]
    torch.testing.assert_close(found, truth)
    expected, gradient = (torch.autograd.grad(value, logp_N)[0] for value in (truth, found))
    torch.testing.assert_close(gradient, expected)


def test_partners_by_rank_do_not_depend_on_the_order_of_the_lines() -> None:
    lines = torch.tensor([[7, 0.1, 5.0], [3, -2.0, 1.0], [5, 9.0, 3.0]], dtype=torch.float64)
    of_a, of_b = _ranks.partners(_ranks.table(lines), torch.tensor([3, 5, 7]))
    assert of_a.tolist() == [1.0, 5.0, 3.0] and of_b.tolist() == [-2.0, 0.1, 9.0]
    assert torch.equal(_ranks.table(lines[[2, 0, 1]]), _ranks.table(lines))


def test_the_place_of_a_prediction_in_its_sequence() -> None:
    batch = collate(judged_rows("pair", 4, 2))
    sequences, places = batch.sequence_N.tolist(), _sequences.place_in_sequence(batch).tolist()
    assert places == [sequences[:index].count(s) for index, s in enumerate(sequences)]


def test_the_mean_of_bco_runs_over_all_steps() -> None:
    method = load_plugin(luthier.methods, "bco")()
    first = method.statistics(torch.tensor([[1.0], [3.0]], dtype=torch.float64), None)
    second = method.statistics(torch.tensor([[5.0]], dtype=torch.float64), first)
    assert second.tolist() == [9.0, 3.0]
    assert torch.equal(method.statistics(torch.zeros(0, 0, dtype=torch.float64), second), second)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0]}, "has 1 numbers for 2 losses"),
        ({"loss_type": "exo_pair"}, "set it to 0.001"),
        ({"loss_type": ["aot", "aot_pair"]}, "choose one"),
        ({"loss_type": "aot", "wpo": True}, "set wpo: false or take another loss_type"),
    ],
)
def test_settings_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    config = config_from_dict({"model": "demo:tiny", "data": "a.jsonl", "method": {"name": "dpo", **options}})
    with pytest.raises(ConfigError, match=message) as caught:
        build_method(config)
    assert "pydantic" not in str(caught.value)
