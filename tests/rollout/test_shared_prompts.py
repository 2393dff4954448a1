"""Prompts that begin like earlier ones are read from where they part: the answers are the same, only sooner."""

import random

import pytest
import torch

from luthier.models.decoding.bound import bind
from luthier.models.decoding.cache import BLOCK
from luthier.models.decoding.check import check
from luthier.models.decoding.decoder import BlockDecoder
from luthier.rollout.live import Answer, LiveBatch, Order, Speaker
from luthier.rollout.native import NativeGenerator
from luthier.rollout.places import Begin, BlockPlaces
from luthier.rollout.sampling import SamplingSettings
from tiny_models import FAMILIES, VOCAB, tiny_llama

EOS = frozenset([2])


class Letters:
    """Decodes ids as if they were letters."""

    def decode(self, token_ids: list[int], **_: object) -> str:
        return "".join(chr(97 + token % 26) for token in token_ids)


def decoder_of(model: torch.nn.Module, blocks: int) -> BlockDecoder:
    shape = check(model).shape  # type: ignore[arg-type]
    assert shape is not None
    return BlockDecoder(bind(model), shape, blocks)  # type: ignore[arg-type]


def places_of(model: torch.nn.Module, blocks: int = 64, owner: str | None = "a") -> BlockPlaces:
    return BlockPlaces(decoder_of(model, blocks), blocks, torch.device("cpu"), owner)


def prompts(draw: random.Random, num: int) -> list[list[int]]:
    """Prompts that begin with parts of others, some of them within a block, some equal."""
    found: list[list[int]] = []
    for _ in range(num):
        start = draw.choice(found)[: draw.randint(0, 130)] if found and draw.random() < 0.7 else []
        found.append([*start, *(draw.randrange(3, VOCAB) for _ in range(draw.choice([1, 5, 33, 70])))][:150])
    return found


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kept", ["float32", "bfloat16"])
def test_logits_are_those_of_reading_all_of_the_prompt(family: str, kept: str) -> None:
    """As exact as without sharing, by the rule of two; `kept` is the dtype of weights and cache."""
    model = FAMILIES[family]().to(getattr(torch, kept))
    exact = FAMILIES[family]().to(getattr(torch, kept)).double()
    apart, together = places_of(model, 400, None), places_of(model, 400)
    draw, known = random.Random(3), 0
    given = [Begin(prompt, 1, 4) for prompt in prompts(draw, 18)]
    for begins in (given[:6], given[6:12], given[12:]):
        mine, other = together.begin(begins), apart.begin(begins)
        known += sum(mine.known)
        truth = torch.stack([exact(input_ids=torch.tensor([one.prompt])).logits[0, -1] for one in begins])
        tokens = [draw.randrange(3, VOCAB) for _ in begins]
        stepped = [places.step(tokens, [own[0] for own in begun.places])
                   for places, begun in ((together, mine), (apart, other))]  # fmt: skip
        longer = [[*one.prompt, token] for one, token in zip(begins, tokens, strict=True)]
        further = torch.stack([exact(input_ids=torch.tensor([ids])).logits[0, -1] for ids in longer])
        for shared_PV, alone_PV, truth_PV in (
            (mine.logits_PV, other.logits_PV, truth), (stepped[0], stepped[1], further)
        ):  # fmt: skip
            error, bound = (float((found.double() - truth_PV).norm()) for found in (shared_PV, alone_PV))
            assert error <= 2 * bound
    assert known > 200


def orders(draw: random.Random, names: tuple[str, ...], num: int) -> list[Order]:
    found = []
    for number, prompt in enumerate(prompts(draw, num)):
        sampled, limit = number % 2, draw.randint(1, 12)
        settings = SamplingSettings(
            max_new_tokens=limit, temperature=0.9 * sampled, seed=number, num_samples=1 + sampled
        )
        found.append(Order(draw.choice(names), prompt, settings, limit))
    return found


def run(batch: LiveBatch, waiting: list[Order], draw: random.Random) -> list[Answer]:
    """Orders arrive at random times; some are dropped under way. All answers."""
    arrived: list[Order] = []
    answers: list[Answer] = []
    while waiting or arrived or batch.going:
        for _ in range(draw.randint(0, 4)):
            arrived += [waiting.pop(0)] if waiting else []
        fitting = batch.fitting(arrived)
        arrived = arrived[len(fitting) :]
        answers += batch.join(fitting) if fitting else []
        if batch.going and draw.random() < 0.15:
            batch.leave([draw.choice(batch.going).order])
        batch.step()
    return answers


@torch.no_grad()
@pytest.mark.parametrize("blocks", [14, 30, 400])
def test_answers_of_several_models_with_little_room_and_clients_that_leave(blocks: int) -> None:
    models = {"a": tiny_llama(), "b": tiny_llama(seed=5)}
    draw, decoder = random.Random(blocks), decoder_of(models["a"], blocks)
    other = BlockDecoder(bind(models["b"]), check(models["b"]).shape, cache=decoder.cache)  # type: ignore[arg-type]
    speakers = {
        name: Speaker(BlockPlaces(one, blocks, torch.device("cpu"), name), EOS, Letters())
        for name, one in (("a", decoder), ("b", other))
    }
    answers = run(LiveBatch(speakers, most_rows=6), orders(draw, ("a", "b"), 50), draw)
    ended = [answer for answer in answers if not answer.broken]
    assert sum(answer.known for answer in answers) > 300 and len(ended) > 40
    assert any(answer.broken for answer in answers)
    natives = {name: NativeGenerator(model, eos_token_ids=EOS) for name, model in models.items()}
    for answer in answers:
        order = answer.order
        right = natives[order.model].generate([order.prompt], order.settings)[0][answer.row.sample]
        assert right.ids[: len(answer.row.ids)] == answer.row.ids
        assert answer.broken or right.finish == answer.row.finish
    assert decoder.cache.num_free == blocks


@torch.no_grad()
def test_prompts_that_come_at_once_are_read_from_where_they_part() -> None:
    places = places_of(tiny_llama())
    common, draw = [5] * 50, random.Random(0)
    begins = [Begin([*common, *(draw.randrange(3, VOCAB) for _ in range(9))], 1, 4) for _ in range(5)]
    begins.insert(2, Begin([7] * 40, 1, 4))  # one that shares nothing
    assert places.begin(begins).known == [0, 50, 0, 50, 50, 50]


@torch.no_grad()
def test_the_next_turn_of_a_chat_is_read_from_the_end_of_the_answer_before() -> None:
    places, settings = places_of(tiny_llama()), SamplingSettings(max_new_tokens=40)
    batch = LiveBatch({"a": Speaker(places, frozenset(), Letters())}, most_rows=4)
    first = batch.join([Order("a", [5, 6, 7] * 12, settings, 40)])[0]
    while batch.going:
        batch.step()
    before = [*first.order.prompt, *first.row.ids]
    second = batch.join([Order("a", [*before, 9, 8, 7], settings, 40)])[0]
    assert second.known == len(before) - 1  # its last token was drawn, but never read


@torch.no_grad()
def test_without_an_owner_nothing_stays_known() -> None:
    places = places_of(tiny_llama(), owner=None)
    for _ in range(2):
        begun = places.begin([Begin([5] * 3 * BLOCK, 1, 4)] * 2)
        assert begun.known == [0, 0]
        for own in begun.places:
            places.release(own[0], [5] * 3 * BLOCK)
    assert places.cache.known("a", [5] * 3 * BLOCK) == 0
