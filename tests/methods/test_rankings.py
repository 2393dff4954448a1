"""Losses on rankings next to their definitions, written out answer by answer."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import luthier.methods
from luthier.config.plugins import load_plugin
from luthier.data.batch import Batch, Example, Segment, collate
from luthier.methods import _rankings, _sequences
from luthier.methods.base import Scores
from method_rows import judged_rows


def ranking(row: int, **facts: tuple[float, ...]) -> Example:
    """A row with an answer of one token for each fact, so that log-probabilities of tokens are those of answers."""
    prompt = Segment(np.array([1], np.int32), np.zeros(1, np.float32))
    answer = Segment(np.array([5], np.int32), np.ones(1, np.float32), 0)
    return Example((prompt, *[answer] * len(next(iter(facts.values())))), row=row, columns=dict(facts))


def drawn(batch: Batch) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logp, reference = -3 * torch.rand(2, len(batch.target_N), generator=generator, dtype=torch.float64)
    return logp.requires_grad_(), reference


def made(name: str, **options: Any) -> Any:
    return load_plugin(luthier.methods, name)(**options)


def values_of(batch: Batch, value_N: Tensor) -> list[tuple[list[float], list[Tensor]]]:
    """For each row its ranks and a value of each answer."""
    value_Q = _sequences.sums(value_N, batch)
    rows = batch.columns["row"].tolist()
    found = []
    for row in dict.fromkeys(rows):
        places = [i for i, other in enumerate(rows) if other == row]
        found.append((batch.columns["rank"][places].tolist(), [value_Q[i] for i in places]))
    return found


def check(method: Any, batch: Batch, truth: Any) -> dict[str, float]:
    """Loss and gradient are those of `truth`, made of ranks and values of one row; returns the metrics."""
    logp, reference = drawn(batch)
    loss, metrics = method.loss(Scores(logp, reference), batch)
    value = logp - reference if method.needs_reference else logp
    expected = torch.stack([truth(*row) for row in values_of(batch, value)]).sum()
    torch.testing.assert_close(loss, expected)
    wanted, found = (torch.autograd.grad(x, logp, retain_graph=True)[0] for x in (expected, loss))
    torch.testing.assert_close(found, wanted)
    return {name: float(total) / method.count(batch) for name, total in metrics.items()}


def test_plackett_luce_is_choosing_the_best_of_what_is_left() -> None:
    def truth(ranks: list[float], h: list[Tensor]) -> Tensor:
        loss = torch.zeros(())
        for k in range(len(h)):
            left = [h[j] for j in range(len(h)) if j == k or ranks[j] > ranks[k]]
            loss = loss + torch.logsumexp(0.3 * torch.stack(left), 0) - 0.3 * h[k]
        return loss

    metrics = check(made("dpo_ranking", beta=0.3), collate(judged_rows("ranking", 7)), truth)
    assert metrics["rewards/margins"] == pytest.approx(
        metrics["rewards/chosen"] - metrics["rewards/rejected"]
    )


def test_the_orders_of_some_answers_have_probabilities_that_add_up_to_one() -> None:
    """Enumerated: e^-loss is a distribution over all orders, whatever the model says."""
    method, shares = made("dpo_ranking", beta=0.7), []
    h = [0.3, -1.2, 2.0, 0.1]
    for order in itertools.permutations(h):
        batch = collate([ranking(0, rank=(1.0, 2.0, 3.0, 4.0))])
        loss, _ = method.loss(Scores(torch.tensor(order), torch.zeros(4)), batch)
        shares.append(math.exp(-float(loss)))
    likeliest = list(itertools.permutations(h)).index((2.0, 0.3, 0.1, -1.2))
    assert sum(shares) == pytest.approx(1.0) and np.argmax(shares) == likeliest


def test_pairwise_is_dpo_of_every_two() -> None:
    def truth(ranks: list[float], h: list[Tensor]) -> Tensor:
        losses = [
            -torch.nn.functional.logsigmoid(0.1 * (h[i] - h[j]))
            for i, j in itertools.product(range(len(h)), repeat=2)
            if ranks[i] < ranks[j]
        ]
        return torch.stack(losses).mean() if losses else 0 * h[0]

    check(made("dpo_ranking", loss_type="pairwise"), collate(judged_rows("ranking", 7)), truth)


def test_rrhf_is_its_formula() -> None:
    def truth(ranks: list[float], logp: list[Tensor]) -> Tensor:
        pairs = [(i, j) for i in range(len(logp)) for j in range(len(logp)) if ranks[i] < ranks[j]]
        return sum(((logp[j] - logp[i]).relu() for i, j in pairs), -0.5 * logp[0])

    rows = [
        ranking(i, rank=tuple(map(float, ranks))) for i, ranks in enumerate([(1, 2, 3), (1, 1, 2, 3), (1, 2)])
    ]
    metrics = check(made("rrhf", nll_weight=0.5), collate(rows), truth)
    assert metrics["nll_loss"] == pytest.approx(-metrics["logps/chosen"])


def test_lipo_weighs_pairs_by_what_swapping_them_would_change() -> None:
    """Gains and discounts by hand: shares of wins over sorted lists."""

    def truth(ranks: list[float], h: list[Tensor]) -> Tensor:
        values = [float(x.detach()) for x in h]
        place = [1 + sorted(values, reverse=True).index(value) for value in values]
        loss = 0 * h[0]
        for i, j in itertools.product(range(len(h)), repeat=2):
            if ranks[i] >= ranks[j]:
                continue
            wins = [
                sum(
                    1.0 if ranks[k] < ranks[m] else 0.5 if ranks[k] == ranks[m] else 0.0
                    for m in range(len(h))
                    if m != k
                )
                for k in (i, j)
            ]
            gain = abs(2 ** (wins[0] / (len(h) - 1)) - 2 ** (wins[1] / (len(h) - 1)))
            cost = abs(1 / math.log(1 + place[i]) - 1 / math.log(1 + place[j]))
            loss = loss - gain * cost * torch.nn.functional.logsigmoid(0.3 * (h[i] - h[j]))
        return loss

    check(made("lipo", beta=0.3), collate(judged_rows("ranking", 9)), truth)


def test_lipo_begins_in_the_order_of_the_data_whatever_rounding_does() -> None:
    batch = collate([ranking(0, rank=(1.0, 2.0))])
    for noise in (0.0, 1e-6, -1e-6):
        loss, _ = made("lipo").loss(
            Scores(torch.tensor([-1.0, -1.0 + noise]), torch.tensor([-1.0, -1.0])), batch
        )
        assert float(loss) == pytest.approx((1 / math.log(2) - 1 / math.log(3)) * math.log(2), rel=1e-5)


@pytest.mark.parametrize("loss_type", ["plackett_luce", "pairwise"])
def test_two_answers_are_a_pair(loss_type: str) -> None:
    pairs = judged_rows("pair", 6)
    ranked = [Example(row.segments, row.row, {"rank": (1.0, 2.0)}) for row in pairs]
    logp, reference = drawn(collate(pairs))
    (loss, metrics), (other, others) = (
        method.loss(Scores(logp, reference), collate(rows))
        for method, rows in ((made("dpo_ranking", loss_type=loss_type), ranked), (made("dpo"), pairs))
    )
    torch.testing.assert_close(loss, other)
    assert all(float(value) == pytest.approx(float(others[name])) for name, value in metrics.items())


def test_scores_say_the_same_as_ranks_and_a_row_that_comes_twice_is_two_rankings() -> None:
    ranks, scores = (1.0, 2.0, 2.0), (9.0, 4.0, 4.0)
    logp, reference = drawn(collate([ranking(0, rank=ranks)] * 2))
    one, two, mixed = (
        made("dpo_ranking").loss(Scores(logp, reference), collate(rows))[0]
        for rows in (
            [ranking(3, rank=ranks), ranking(3, rank=ranks)],
            [ranking(3, score=scores), ranking(3, score=scores)],
            [ranking(0, rank=ranks), ranking(1, score=scores)],
        )
    )
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(one, mixed)
    assert _rankings.count(collate([ranking(3, rank=ranks)] * 2)) == 2


def test_padding_is_no_ranking() -> None:
    batch = collate([ranking(0, rank=(1.0, 2.0))])
    ranked = _rankings.rankings(batch.padded(9, 4, 8))
    assert ranked.best_Q.tolist() == [True] + [False] * (len(ranked.best_Q) - 1)
    assert int(ranked.worse_QQ.sum()) == 1 and int(ranked.same_QQ.sum()) == 4
