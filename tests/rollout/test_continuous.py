"""Rows that come and go: the answers of the plain way, whatever room there is and whoever goes first."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.models.compat import use_forest_attention
from luthier.models.decoding.bound import bind
from luthier.models.decoding.cache import BLOCK, blocks_for
from luthier.models.decoding.check import check
from luthier.models.decoding.decoder import BlockDecoder
from luthier.models.lora import adapter_parameters, apply_lora
from luthier.rollout.continuous import ContinuousBatch
from luthier.rollout.native import NativeGenerator
from luthier.rollout.rows import Plan, push_all
from luthier.rollout.sampling import SamplingSettings
from tiny_models import FAMILIES, VOCAB, tiny_cohere, tiny_llama, tiny_mistral

SAMPLED = SamplingSettings(max_new_tokens=14, temperature=1.1, top_k=50, seed=3, num_samples=3)


def prompts_of(lengths: list[int], prefix: int = 0) -> list[list[int]]:
    random = torch.Generator().manual_seed(1)
    common = torch.randint(3, VOCAB, (prefix,), generator=random).tolist()
    return [common + torch.randint(3, VOCAB, (n,), generator=random).tolist() for n in lengths]


LENGTHS = [9, 1, 40, 4, 33, 15, 2]


def answers(model, prompts, sampling: SamplingSettings, **options) -> list[list[tuple[list[int], str]]]:
    native = NativeGenerator(model, eos_token_ids=[2], **options)
    return [[(a.ids, a.finish) for a in samples] for samples in native.generate(prompts, sampling)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prefix", [0, 2 * BLOCK + 3], ids=["apart", "common prefix"])
def test_answers_are_those_of_the_plain_way(family: str, prefix: int) -> None:
    model, prompts = FAMILIES[family](), prompts_of(LENGTHS, prefix)
    for sampling in (SAMPLED, SamplingSettings(max_new_tokens=14)):
        native = NativeGenerator(model, eos_token_ids=[2])
        plain = NativeGenerator(model, eos_token_ids=[2], take_apart=False)
        assert native.way == "The model is decoded from its parts."
        for mine, theirs in zip(
            native.generate(prompts, sampling), plain.generate(prompts, sampling), strict=True
        ):
            assert [(a.ids, a.finish) for a in mine] == [(a.ids, a.finish) for a in theirs]
            for a, b in zip(mine, theirs, strict=True):
                assert a.logp == pytest.approx(b.logp, rel=0, abs=1e-4)


@settings(deadline=None, max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 80), min_size=1, max_size=8),
    prefix=st.sampled_from([0, 5, BLOCK, 70]),
    batch_rows=st.integers(1, 9),
    batch_tokens=st.sampled_from([1, 100, 300, 2000]),
    num_samples=st.integers(1, 4),
)
def test_room_changes_nothing(
    lengths: list[int], prefix: int, batch_rows: int, batch_tokens: int, num_samples: int
) -> None:
    model, prompts = tiny_llama(), prompts_of(lengths, prefix)
    sampling = replace(SAMPLED, num_samples=num_samples, max_new_tokens=6)
    roomy = answers(model, prompts, sampling)
    assert answers(model, prompts, sampling, batch_rows=batch_rows, batch_tokens=batch_tokens) == roomy


class Watched(BlockDecoder):
    """Keeps what is asked of it."""

    read_tokens: list[int]
    step_rows: list[int]

    def step(self, token_B, rows):
        self.step_rows.append(len(rows))
        return super().step(token_B, rows)

    def read(self, stored, tokens):
        self.read_tokens.append(sum(map(len, tokens)))
        return super().read(stored, tokens)


@torch.no_grad()
def watched(
    monkeypatch: pytest.MonkeyPatch,
    prompts: list[list[int]],
    sampling: SamplingSettings,
    limits=None,
    **batch,
) -> tuple[Watched, list]:
    monkeypatch.setattr("luthier.rollout.continuous.BlockDecoder", Watched)
    Watched.read_tokens, Watched.step_rows = [], []
    model = tiny_llama()
    plan = Plan.of(prompts, None, sampling, 256)
    plan = replace(plan, limits=limits or plan.limits)
    rows, shape = plan.rows(None), check(model).shape
    assert shape is not None
    running = ContinuousBatch(bind(model), shape, plan, **{"batch_rows": 64, "batch_tokens": 9999, **batch})
    finished = sum(running.run(rows, lambda *given: push_all(*given, eos=[])))
    assert finished == len(rows)
    assert isinstance(running._decoder, Watched)
    return running._decoder, rows


def test_a_prompt_is_read_once_for_all_its_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, _ = watched(monkeypatch, prompts_of([40, 7]), SAMPLED)
    assert decoder.read_tokens == [47] and set(decoder.step_rows) == {6}


def test_a_prompt_is_read_once_even_if_its_answers_do_not_fit_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    decoder, _ = watched(monkeypatch, prompts_of([40, 7]), SAMPLED, batch_rows=2)
    assert decoder.read_tokens == [40, 7]


def test_a_common_prefix_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, _ = watched(monkeypatch, prompts_of([40, 7, 1], prefix=BLOCK + 5), SAMPLED)
    assert decoder.read_tokens == [BLOCK, 48 + 15]


def test_a_row_that_is_done_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight answers, four at a time, of 2 and of 20 tokens: nobody waits for the long ones."""
    limits = [2, 20, 2, 20, 2, 20, 2, 20]
    sampling = SamplingSettings(max_new_tokens=20)
    decoder, rows = watched(monkeypatch, prompts_of([5] * 8), sampling, limits, batch_rows=4)
    assert [len(row.ids) for row in sorted(rows, key=lambda row: row.prompt)] == limits
    # in batches from start to end it would be twice 19 steps
    assert max(decoder.step_rows) == 4 and len(decoder.step_rows) <= 25


@pytest.mark.parametrize("batch", [{}, {"batch_tokens": 200}, {"batch_rows": 3}])
def test_all_blocks_come_back(monkeypatch: pytest.MonkeyPatch, batch: dict) -> None:
    prompts = prompts_of(LENGTHS, prefix=BLOCK + 1)
    decoder, _ = watched(monkeypatch, prompts, SAMPLED, **batch)
    cache = decoder.cache
    assert cache.num_free == len(cache._users) - blocks_for(BLOCK)  # the common prefix stays


def test_a_cache_for_few_tokens_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, _ = watched(monkeypatch, prompts_of([5]), SamplingSettings(max_new_tokens=4))
    assert len(decoder.cache._users) <= 2


def test_training_between_answers_is_seen() -> None:
    """Reinforcement learning generates while it trains: the weights of that moment answer."""
    model, prompts = tiny_llama(), prompts_of(LENGTHS)
    apply_lora(model, rank=2)
    use_forest_attention(model)
    native = NativeGenerator(model, eos_token_ids=[2])
    sampling = SamplingSettings(max_new_tokens=6)
    native.generate(prompts, sampling)
    random = torch.Generator().manual_seed(0)
    for _ in range(2):
        for parameter in adapter_parameters(model).values():
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=random)
        mine = [[a.ids for a in samples] for samples in native.generate(prompts, sampling)]
        plain = NativeGenerator(model, eos_token_ids=[2], take_apart=False).generate(prompts, sampling)
        assert mine == [[a.ids for a in samples] for samples in plain]


def test_modules_that_were_exchanged_are_looked_at_again() -> None:
    model = tiny_mistral()
    native = NativeGenerator(model, eos_token_ids=[2])
    assert native.way == "The model is decoded from its parts."

    class Doubled(torch.nn.Module):
        def __init__(self, base: torch.nn.Module):
            super().__init__()
            self.base = base

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * self.base(x)

    model.model.layers[0].mlp.down_proj = Doubled(model.model.layers[0].mlp.down_proj)
    assert native.way == "The model generates through transformers' forward: mlp.down_proj is a Doubled."


def test_the_way_is_told() -> None:
    told = NativeGenerator(tiny_cohere(), eos_token_ids=[]).way
    assert "through transformers' forward: no file in models/families describes CohereDecoderLayer" in told
    assert "it was asked for" in NativeGenerator(tiny_llama(), eos_token_ids=[], take_apart=False).way
