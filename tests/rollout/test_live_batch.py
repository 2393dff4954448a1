"""Answers that join and leave while others go on: each is what it would be alone."""

import random
from typing import Any

import pytest
import torch

from luthier.models.decoding.bound import bind
from luthier.models.decoding.check import check
from luthier.models.decoding.decoder import BlockDecoder
from luthier.rollout.decoder import traits_of
from luthier.rollout.live import LiveBatch, Order, Speaker
from luthier.rollout.native import NativeGenerator
from luthier.rollout.places import BlockPlaces, PlainPlaces
from luthier.rollout.sampling import SamplingSettings
from tiny_models import FAMILIES, OTHERS, VOCAB, tiny_llama

EOS = frozenset([2])


class Letters:
    """Decodes ids as if they were letters."""

    def decode(self, token_ids: Any, **_: Any) -> str:
        return "".join(chr(97 + token % 26) for token in token_ids)


def speaker(model: Any, *, blocks: int = 64, plain: bool = False) -> Speaker:
    shape = check(model).shape
    if plain or shape is None:
        return Speaker(PlainPlaces(model, traits_of(model, 0), 32 * blocks), EOS, Letters())
    return Speaker(
        BlockPlaces(BlockDecoder(bind(model), shape, blocks), blocks, model.device), EOS, Letters()
    )


def orders(seed: int, name: str = "a", num: int = 9) -> list[Order]:
    """Prompts of all lengths, greedy and sampled, with one to three answers each."""
    draw = random.Random(seed)
    found = []
    for number in range(num):
        sampled = number % 3 != 0
        limit = draw.randint(1, 12)
        settings = SamplingSettings(
            max_new_tokens=limit,
            temperature=draw.choice([0.7, 1.2]) if sampled else 0.0,
            top_p=draw.choice([1.0, 0.9]),
            top_k=draw.choice([None, 20]),
            seed=number,
            num_samples=draw.randint(1, 3) if sampled else 1,
        )
        prompt = [draw.randrange(3, VOCAB) for _ in range(draw.choice([1, 5, 31, 32, 40]))]
        found.append(Order(name, prompt, settings, limit))
    return found


def run(
    batch: LiveBatch, waiting: list[Order], draw: random.Random
) -> dict[int, list[tuple[list[int], str]]]:
    """Lets orders arrive at random times; the answers by order and sample."""
    arrived: list[Order] = []
    found: dict[int, dict[int, tuple[list[int], str]]] = {id(order): {} for order in waiting}
    left = list(waiting)
    while left or arrived or batch.going:
        for _ in range(draw.randint(0, 3)):
            arrived += [left.pop(0)] if left else []
        fitting = batch.fitting(arrived)
        arrived = arrived[len(fitting) :]
        stepped = batch.join(fitting) if fitting else []
        stepped = [*stepped, *batch.step()]
        for answer in stepped:
            if answer.row.finish:
                found[id(answer.order)][answer.row.sample] = (answer.row.ids, answer.row.finish)
    return {number: [own[sample] for sample in sorted(own)] for number, own in found.items()}


def alone(model: Any, order: Order) -> list[tuple[list[int], str]]:
    native = NativeGenerator(model, eos_token_ids=EOS)
    return [(one.ids, one.finish) for one in native.generate([order.prompt], order.settings)[0]]


@torch.no_grad()
@pytest.mark.parametrize("family", [*FAMILIES, "gpt2"])
def test_each_answer_is_what_it_would_be_alone(family: str) -> None:
    model = {**FAMILIES, **OTHERS}[family]()
    waiting = orders(1)
    batch = LiveBatch({"a": speaker(model)}, most_rows=5)
    found = run(batch, waiting, random.Random(2))
    for order in waiting:
        assert found[id(order)] == alone(model, order)


@torch.no_grad()
def test_all_room_is_given_back() -> None:
    model = tiny_llama()
    for plain in (False, True):
        one = speaker(model, blocks=20, plain=plain)
        batch = LiveBatch({"a": one}, most_rows=16)
        run(batch, orders(3, num=20), random.Random(0))
        places: Any = one.places
        free = places._free if plain else places.cache.num_free
        assert free == (20 * 32 if plain else 20) and not batch.going


@torch.no_grad()
def test_models_share_a_cache_and_keep_apart() -> None:
    first, second = tiny_llama(), tiny_llama(seed=5)
    one = speaker(first)
    cache = one.places.cache  # type: ignore[attr-defined]
    shape = check(second).shape
    assert shape is not None
    other = Speaker(
        BlockPlaces(BlockDecoder(bind(second), shape, cache=cache), 64, second.device), EOS, Letters()
    )
    waiting = [order for pair in zip(orders(4), orders(5, "b"), strict=True) for order in pair]
    found = run(LiveBatch({"a": one, "b": other}, most_rows=7), waiting, random.Random(1))
    for order in waiting:
        assert found[id(order)] == alone(first if order.model == "a" else second, order)
    assert cache.num_free == 64


@torch.no_grad()
def test_an_order_that_leaves_gives_its_room_back_and_changes_nothing() -> None:
    model, (stays, goes) = tiny_llama(), orders(6)[1:3]
    one = speaker(model)
    batch = LiveBatch({"a": one}, most_rows=8)
    batch.join([goes, stays])
    batch.leave([goes])
    kept = list(batch.going)
    assert kept and all(answer.order is stays for answer in kept)
    while batch.going:
        batch.step()
    assert [(answer.row.ids, answer.row.finish) for answer in kept] == alone(model, stays)[: len(kept)]
    assert one.places.cache.num_free == 64  # type: ignore[attr-defined]


@torch.no_grad()
def test_what_never_fits_is_told_and_what_does_not_fit_now_waits() -> None:
    batch = LiveBatch({"a": speaker(tiny_llama(), blocks=4)}, most_rows=2)
    greedy = SamplingSettings(max_new_tokens=30)
    small, large = Order("a", [5] * 40, greedy, 30), Order("a", [5] * 120, greedy, 30)
    many = Order("a", [5], SamplingSettings(max_new_tokens=3, temperature=1, num_samples=3), 3)
    assert batch.ever_fits(small) and not batch.ever_fits(large) and not batch.ever_fits(many)
    assert batch.fitting([small, small]) == [small]
    batch.join([small])
    assert batch.fitting([small]) == []


@torch.no_grad()
def test_a_rule_bounds_what_is_drawn_but_not_the_log_probabilities() -> None:
    class Only:
        def __init__(self) -> None:
            self.taken: list[int] = []

        def restrict(self, logits_V: torch.Tensor) -> str:
            kept = logits_V[[7, 9]].clone()
            logits_V.fill_(-torch.inf)
            logits_V[[7, 9]] = kept
            return ""

        def take(self, token: int) -> str:
            self.taken.append(token)
            return ""

    model, settings = tiny_llama(), SamplingSettings(max_new_tokens=6, temperature=1.0)
    batch = LiveBatch({"a": speaker(model)}, most_rows=4)
    ruled = Order("a", [5, 6], settings, 6, top=4, rule=Only)
    free = Order("a", [5, 6], settings, 6)
    joined = batch.join([ruled, free])
    while batch.going:
        batch.step()
    answer = joined[0]
    assert set(answer.row.ids) <= {7, 9} and answer.rule is not None
    assert answer.rule.taken == answer.row.ids[:-1]  # type: ignore[attr-defined]
    logits = model(torch.tensor([[5, 6, *answer.row.ids]])).logits[0, 1:-1].log_softmax(-1)
    right = logits.gather(1, torch.tensor(answer.row.ids)[:, None]).squeeze(1).tolist()
    assert answer.row.logp == pytest.approx(right, abs=1e-4)
    assert answer.likeliest[0][1] == pytest.approx(float(logits[-1].max()), abs=1e-4)
    assert [(joined[1].row.ids, joined[1].row.finish)] == alone(model, free)


@torch.no_grad()
@pytest.mark.parametrize("place", ["restrict", "take"])
def test_an_answer_whose_rule_cannot_be_followed_breaks_off_and_no_other_does(place: str) -> None:
    class Weary:
        def __init__(self) -> None:
            self.asked = {"restrict": 0, "take": 0}

        def _ask(self, what: str) -> str:
            self.asked[what] += 1
            return "it is too much" if what == place and self.asked[what] == 3 else ""

        def restrict(self, logits_V: torch.Tensor) -> str:
            return self._ask("restrict")

        def take(self, token: int) -> str:
            return self._ask("take")

    model, settings = tiny_llama(), SamplingSettings(max_new_tokens=6, temperature=1.0)
    one = speaker(model)
    batch = LiveBatch({"a": one}, most_rows=4)
    free = Order("a", [5, 6], settings, 6)
    ruled, other = batch.join([Order("a", [5, 6], settings, 6, rule=Weary), free])
    while batch.going:
        batch.step()
    assert (ruled.broken, ruled.unruly, ruled.row.finish) == ("it is too much", True, None)
    assert len(ruled.row.ids) == (2 if place == "restrict" else 3)
    assert [(other.row.ids, other.row.finish)] == alone(model, free)
    assert one.places.cache.num_free == 64  # type: ignore[attr-defined]
