"""How a token is drawn: the draws follow the distribution that the settings describe, and nothing else."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.errors import ConfigError
from luthier.rollout.sampling import SPAN, SamplingSettings, choose, log_probability, row_uniforms

SHARES = torch.linspace(0, 1 - 1e-9, 20_001, dtype=torch.float64)
"""Evenly spread random numbers: what they draw is the distribution itself."""


def drawn(logits_V: torch.Tensor, sampling: SamplingSettings) -> torch.Tensor:
    """Share of the draws that each token gets."""
    token_B = choose(logits_V.expand(len(SHARES), -1), SHARES, sampling)
    return torch.bincount(token_B, minlength=len(logits_V)).double() / len(SHARES)


def described(logits_V: torch.Tensor, sampling: SamplingSettings) -> torch.Tensor:
    """The distribution by its definition, token by token in order of their probability."""
    probability = (logits_V.double() / sampling.temperature).softmax(0).tolist()
    order = sorted(range(len(probability)), key=lambda token: -probability[token])[: sampling.top_k]
    total, mass, kept = sum(probability[t] for t in order), 0.0, []
    for token in order:
        if mass >= sampling.top_p:
            break
        mass += probability[token] / total
        kept.append(token)
    weights = [probability[t] if t in kept else 0.0 for t in range(len(probability))]
    return torch.tensor(weights, dtype=torch.float64) / sum(weights)


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    num_tokens=st.integers(2, 40),
    temperature=st.floats(0.2, 3.0),
    top_k=st.none() | st.integers(1, 50),
    top_p=st.sampled_from([0.1, 0.33, 0.6, 0.9, 0.999, 1.0]),
)
def test_draws_follow_the_described_distribution(seed, num_tokens, temperature, top_k, top_p) -> None:
    logits_V = 3 * torch.randn(num_tokens, generator=torch.Generator().manual_seed(seed))
    sampling = SamplingSettings(temperature=temperature, top_k=top_k, top_p=top_p)
    # Evenly spread draws miss a share by at most one of them at each end.
    assert (drawn(logits_V, sampling) - described(logits_V, sampling)).abs().max() <= 2.5 / len(SHARES)


def test_top_p_looks_past_its_first_candidates() -> None:
    """Nearly even logits: 256 candidates hold 19 % of the mass, so 90 % need a second look."""
    logits_V = 0.1 * torch.randn(1500, generator=torch.Generator().manual_seed(0))
    sampling = SamplingSettings(temperature=1.0, top_p=0.9)
    # The middle of each kept token's share of the unit interval must draw exactly that token.
    kept = described(logits_V, sampling)
    order = kept.argsort(descending=True)[: int((kept > 0).sum())]
    middle = kept[order].cumsum(0) - kept[order] / 2
    some = torch.arange(0, len(order), 37)
    assert len(order) > 1200
    drawn = choose(logits_V.expand(len(some), -1), middle[some], sampling)
    assert drawn.tolist() == order[some].tolist()


@pytest.mark.parametrize("num_tokens", [2 * SPAN + 1, 5 * SPAN, 2000])
def test_a_large_vocabulary_is_drawn_from_in_two_steps(num_tokens: int) -> None:
    """The middle of each token's share of the unit interval draws exactly that token; tokens without one, never."""
    random = torch.Generator().manual_seed(num_tokens)
    logits_V = 2 * torch.randn(num_tokens, generator=random)
    logits_V[torch.randperm(num_tokens, generator=random)[: num_tokens // 2]] = -math.inf
    logits_V[SPAN : 2 * SPAN] = -math.inf  # a whole span of them
    share_V = logits_V.double().softmax(0)
    end_V = share_V.cumsum(0)
    likely = (share_V > 1e-6).nonzero()[:, 0]
    middle = (end_V - share_V / 2)[likely]
    drawn = choose(logits_V.expand(len(likely), -1), middle, SamplingSettings(temperature=1.0))
    assert drawn.tolist() == likely.tolist()
    for uniform in (0.0, 1 - 2.0**-40):
        (edge,) = choose(
            logits_V[None], torch.tensor([uniform], dtype=torch.float64), SamplingSettings(temperature=1.0)
        )
        assert share_V[edge] > 0


def test_greedy_takes_the_most_likely_token() -> None:
    logits_BV = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    assert choose(logits_BV, None, SamplingSettings()).tolist() == logits_BV.argmax(1).tolist()


def test_a_tiny_temperature_is_greedy_and_does_not_overflow() -> None:
    logits_BV = 1e4 * torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    token_B = choose(logits_BV, torch.rand(50, dtype=torch.float64), SamplingSettings(temperature=1e-6))
    assert token_B.tolist() == logits_BV.argmax(1).tolist()


def test_a_token_without_probability_is_never_drawn() -> None:
    logits_V = torch.full((64,), -math.inf)
    logits_V[20:23] = 0.0
    for share in (0.0, 1 - 2.0**-40):
        uniform_B = torch.tensor([share], dtype=torch.float64)
        for sampling in (SamplingSettings(temperature=1.0), SamplingSettings(temperature=1.0, top_p=0.99)):
            assert int(choose(logits_V[None], uniform_B, sampling)) in (20, 21, 22)


def test_log_probability_is_that_of_the_whole_vocabulary_at_temperature_one() -> None:
    logits_BV = 5 * torch.randn(9, 101, generator=torch.Generator().manual_seed(1))
    token_B = torch.arange(9) * 3
    expected = logits_BV.double().log_softmax(-1)[torch.arange(9), token_B]
    torch.testing.assert_close(log_probability(logits_BV, token_B).double(), expected, rtol=0, atol=1e-5)


def test_each_answer_has_its_own_numbers_and_always_the_same() -> None:
    sampling = SamplingSettings(max_new_tokens=64, temperature=1.0, num_samples=4, seed=5)
    rows = {
        (s, p, k): row_uniforms(replace(sampling, seed=s), p, k)
        for s in (0, 5)
        for p in (0, 1, 11)
        for k in (0, 1)
    }
    assert len({tuple(row.tolist()) for row in rows.values()}) == len(rows)
    assert torch.equal(rows[5, 1, 1], row_uniforms(sampling, 1, 1))
    # A longer answer begins with the same numbers, so a limit changes nothing but the end.
    assert torch.equal(row_uniforms(replace(sampling, max_new_tokens=200), 1, 1)[:64], rows[5, 1, 1])
    every = torch.cat(list(rows.values()))
    assert every.min() >= 0 and every.max() < 1 and abs(every.mean() - 0.5) < 0.04


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens is 0; an answer needs at least 1"),
        ({"temperature": -0.5}, "temperature is -0.5; give 0 for greedy"),
        ({"temperature": 1e-9}, "temperature is 1e-09; give 0 for greedy"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0; give at least 1"),
        ({"top_p": 0.0}, r"top_p is 0.0; it is a probability above 0 and at most 1"),
        ({"top_p": 1.5}, r"top_p is 1.5; it is a probability"),
        ({"stop": "END"}, "stop is 'END'; give a tuple of texts"),
        ({"stop": ("",)}, "give a tuple of texts that are not empty"),
        ({"seed": -1}, "seed is -1; give 0 or more"),
        ({"num_samples": 0}, "num_samples is 0; give at least 1"),
        ({"num_samples": 4}, "at temperature 0 all answers to a prompt are the same"),
    ],
)
def test_settings_that_cannot_work_are_refused(values, message) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingSettings(**values)


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        SamplingSettings(max_new_tokens=-1, top_p=2.0, seed=-3)
    assert len(caught.value.faults) == 3


@pytest.mark.parametrize("spoiled", [math.nan, math.inf])
def test_logits_that_are_no_numbers_never_lead_past_the_vocabulary(spoiled: float) -> None:
    logits_BV = torch.zeros(2, 2 * SPAN + SPAN // 2)
    logits_BV[0, 3] = spoiled
    token_B = choose(
        logits_BV, torch.tensor([0.5, 0.999], dtype=torch.float64), SamplingSettings(temperature=1.0)
    )
    assert int(token_B.min()) >= 0 and int(token_B.max()) < logits_BV.shape[1]
