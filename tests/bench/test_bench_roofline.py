"""The limit's arithmetic against numbers worked out by hand and against counting operations one by one."""

from dataclasses import replace

import numpy as np
import pytest
from bench.roofline import (
    Rates,
    Work,
    adapter_elements,
    decode_limit,
    fused_elements,
    optimizer_seconds,
    seconds_per_token,
    training_cost,
    training_limit,
    work_of,
)
from bench.rows import Rows
from bench.shapes import SHAPES

H200 = Rates(790e12, 790e12, 790e12, 4.3e12, 2)
AMX = Rates(2e12, 2e12, 2e12, 20e9, 2)


@pytest.mark.parametrize(
    ("name", "weights", "adapter"),
    [
        ("Qwen3-0.6B", 0.440e9, 10.1e6),
        ("Llama-3.1-8B", 6.979e9, 41.9e6),
        ("Llama-3.1-70B", 68.45e9, 207e6),
    ],
)
def test_weights_of_body_and_adapter(name: str, weights: float, adapter: float) -> None:
    assert SHAPES[name].body == pytest.approx(weights, rel=2e-3)
    assert SHAPES[name].adapter(16) == pytest.approx(adapter, rel=5e-3)


GIGA_PER_TOKEN = [
    # model, document length, LoRA, LoRA recomputed, full, full recomputed
    ("Qwen3-0.6B", 512, 2.34, 3.28, 3.31, 4.25),
    ("Qwen3-0.6B", 2048, 2.96, 4.07, 3.93, 5.05),
    ("Qwen3-0.6B", 8192, 5.42, 7.24, 6.40, 8.22),
    ("Llama-3.1-8B", 512, 29.7, 43.8, 43.9, 58.0),
    ("Llama-3.1-8B", 2048, 31.1, 45.6, 45.3, 59.8),
    ("Llama-3.1-8B", 8192, 36.7, 52.8, 51.0, 67.1),
    ("Llama-3.1-8B", 32768, 59.3, 81.8, 73.5, 96.1),
    ("Llama-3.1-70B", 2048, 286.5, 426, 423, 563),
    ("Llama-3.1-70B", 8192, 314.7, 462, 451, 599),
]


@pytest.mark.parametrize(("name", "length", "lora", "lora_again", "full", "full_again"), GIGA_PER_TOKEN)
def test_operations_per_token(
    name: str, length: int, lora: float, lora_again: float, full: float, full_again: float
) -> None:
    shape, work = SHAPES[name], Work(length, 0.5)
    found = [
        training_cost(shape, work, rank, recompute=recompute).operations / 1e9
        for rank, recompute in ((16, False), (16, True), (None, False), (None, True))
    ]
    assert found == pytest.approx([lora, lora_again, full, full_again], rel=4e-3)


@pytest.mark.parametrize(
    ("name", "fused", "adapters"),
    [
        ("SmolLM2-135M", 52, 23),
        ("Qwen3-0.6B", 113, 53),
        ("Qwen3-4B", 298, 137),
        ("Llama-3.1-8B", 430, 193),
        ("Llama-3.1-70B", 852, 381),
    ],
)
def test_kilobytes_per_token_and_layer(name: str, fused: float, adapters: float) -> None:
    shape = SHAPES[name]
    assert 2 * fused_elements(shape) / 1e3 == pytest.approx(fused, abs=0.6)
    assert 2 * adapter_elements(shape) / 1e3 == pytest.approx(adapters, abs=0.6)


@pytest.mark.parametrize(
    ("rates", "name", "length", "tokens_per_second"),
    [
        (H200, "Llama-3.1-8B", 512, 23.7e3),
        (H200, "Llama-3.1-8B", 2048, 22.7e3),
        (H200, "Llama-3.1-8B", 8192, 19.6e3),
        (H200, "Qwen3-0.6B", 2048, 207e3),
        (H200, "Llama-3.1-70B", 2048, 2593),
        (AMX, "SmolLM2-135M", 512, 2502),
        (AMX, "SmolLM2-135M", 8192, 1157),
        (AMX, "Qwen3-0.6B", 2048, 585),
    ],
)
def test_additive_roofline(rates: Rates, name: str, length: int, tokens_per_second: float) -> None:
    cost = training_cost(SHAPES[name], Work(length, 0.5), 16)
    assert 1 / seconds_per_token(cost, rates) == pytest.approx(tokens_per_second, rel=5e-3)


def test_each_kind_of_product_takes_its_own_rate() -> None:
    cost = training_cost(SHAPES["tiny"], Work(100, 1.0), None)
    slow = replace(AMX, weight_gradient=AMX.weight_gradient / 2)
    extra = seconds_per_token(cost, slow) - seconds_per_token(cost, AMX)
    assert extra == pytest.approx(cost.weight_gradient / AMX.weight_gradient)
    lora = training_cost(SHAPES["tiny"], Work(100, 1.0), 16)
    assert seconds_per_token(lora, slow) == seconds_per_token(lora, AMX)  # frozen weights have no gradient


def test_work_counts_documents_and_not_packs() -> None:
    lengths = np.array([[10, 20], [50, 50]])
    work = work_of(Rows(np.zeros(130, np.int32), lengths))
    assert work.attended == pytest.approx((30**2 + 100**2) / 130)
    assert work.learned == pytest.approx(70 / 130)


def test_attention_term_is_the_causal_forward_counted_pair_by_pair() -> None:
    """A document of S tokens has S(S+1)/2 pairs; each takes 2 operations a feature for scores and for values."""
    shape, length = SHAPES["tiny"], 64
    short, long = (training_cost(shape, Work(float(s), 0.0), None).forward for s in (0, length))
    pairs = length * (length + 1) / 2
    by_hand = pairs * 4 * shape.heads * shape.head_size * shape.layers / length
    assert (long - short) == pytest.approx(by_hand, rel=1.1 / length)


def test_optimizer_weighs_on_short_steps_only() -> None:
    shape = SHAPES["SmolLM2-135M"]
    rows = Rows(np.zeros(1024, np.int32), np.array([[1, 1023]]))
    few, many = (training_limit(shape, rows, None, tokens, AMX) for tokens in (128, 1e9))
    per_token = seconds_per_token(training_cost(shape, work_of(rows), None), AMX)
    assert 1 / many == pytest.approx(per_token, rel=1e-3)
    assert 1 / few - 1 / many == pytest.approx(optimizer_seconds(shape, None, AMX) / 128, rel=1e-3)


def test_decoding_reads_all_weights_for_each_token_of_a_batch() -> None:
    shape = SHAPES["SmolLM2-135M"]
    weights = shape.body + shape.vocabulary * shape.hidden
    assert decode_limit(shape, 1, AMX) == pytest.approx(AMX.bandwidth / (2 * weights))
    assert decode_limit(shape, 10**6, AMX) == pytest.approx(AMX.forward / (2 * weights))
