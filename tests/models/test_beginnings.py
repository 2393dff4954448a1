"""Blocks that stay known for what they hold: found again for equal tokens only, never with other contents."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.models.decoding.beginnings import Beginnings, shared
from luthier.models.decoding.cache import BLOCK, BlockCache, Stored, blocks_for

OWNERS = ("base", "adapter")


def marks(owner: str, tokens: Sequence[int]) -> list[float]:
    """What stands for each token's keys: like these, it depends on the model and on all tokens before."""
    return [float(hash((owner, tuple(tokens[: end + 1]))) % 2**50) for end in range(len(tokens))]


@dataclass
class Texts:
    """A cache and what goes on in it."""

    num_blocks: int
    cache: BlockCache = field(init=False)
    going: list[tuple[str, list[int], Stored]] = field(default_factory=list)
    said: dict[str, list[list[int]]] = field(default_factory=lambda: {owner: [] for owner in OWNERS})

    def __post_init__(self) -> None:
        self.cache = BlockCache(1, 1, 1, self.num_blocks, torch.float64, torch.device("cpu"))

    def held(self, stored: Stored) -> list[float]:
        if not stored.length:
            return []
        keys, values = self.cache.read(0, stored, stored.length)
        assert torch.equal(keys, values)
        return keys[0, :, 0].tolist()

    def read(self, owner: str, tokens: Sequence[int], stored: Stored, stop: int) -> None:
        new = torch.tensor(marks(owner, tokens[:stop])[stored.length :], dtype=torch.float64)
        place = self.cache.places(stored, stored.length, stop)
        self.cache.write(0, place, new[:, None, None], new[:, None, None])
        stored.length = stop

    def begin(self, owner: str, tokens: list[int], prompt: int) -> int:
        """As a server does: looks what is known, reads the rest, makes it known. How much was known."""
        num = self.cache.known(owner, tokens[:prompt])
        stored = self.cache.begin(owner, tokens[:prompt])
        found = stored.length
        assert found <= num and found < prompt
        assert self.held(stored) == marks(owner, tokens[:found])
        self.cache.grow(stored, len(tokens))
        self.read(owner, tokens, stored, prompt)
        self.cache.remember(owner, stored, tokens[:prompt])
        self.said[owner].append(tokens[:prompt])
        self.going.append((owner, tokens, stored))
        return found

    def end(self, place: int, step: int) -> None:
        owner, tokens, stored = self.going.pop(place)
        self.read(owner, tokens, stored, step)
        assert self.held(stored) == marks(owner, tokens[:step])
        self.cache.remember(owner, stored, tokens)
        self.said[owner].append(tokens[:step])
        self.cache.release(stored)


def text_of(draw: random.Random, known: list[list[int]]) -> list[int]:
    """New tokens, behind a part of a text that there was more often than not."""
    start = draw.choice(known)[: draw.randint(0, 4 * BLOCK)] if known and draw.random() < 0.8 else []
    return [*start, *(draw.randrange(3) for _ in range(draw.randint(2, 2 * BLOCK)))]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), num_blocks=st.sampled_from([9, 14, 400]))
def test_what_is_found_is_what_was_read_for_these_tokens_by_this_model(seed: int, num_blocks: int) -> None:
    draw, texts = random.Random(seed), Texts(num_blocks)
    for _ in range(60):
        owner = draw.choice(OWNERS)
        everybody = [tokens for known in texts.said.values() for tokens in known]
        tokens = text_of(draw, everybody)[: 5 * BLOCK]
        if blocks_for(len(tokens)) <= texts.cache.num_free:
            prompt = draw.randint(1, len(tokens))
            longest = max((shared(tokens[: prompt - 1], one) for one in texts.said[owner]), default=0)
            found = texts.begin(owner, tokens, prompt)
            assert found <= longest
            assert num_blocks < 400 or found == longest  # nothing had to be given away
        elif texts.going:
            place = draw.randrange(len(texts.going))
            _, tokens, stored = texts.going[place]
            texts.end(place, draw.randint(stored.length, len(tokens)))  # some leave before their end
        used = {block for _, _, stored in texts.going for block in stored.blocks}
        assert texts.cache.num_free == num_blocks - len(used)
    while texts.going:
        texts.end(0, texts.going[0][2].length)
    assert texts.cache.num_free == num_blocks


def test_what_was_not_used_for_the_longest_time_is_given_away_first() -> None:
    texts = Texts(6)
    first, second, third = ([number] * 2 * BLOCK for number in range(3))
    for tokens in (first, second, third):
        texts.begin("base", tokens, len(tokens))
        texts.end(0, len(tokens))
    texts.begin("base", first, len(first))  # again, so that the second is the oldest
    texts.end(0, len(first))
    texts.begin("base", [7] * 2 * BLOCK, 2 * BLOCK)
    assert texts.cache.known("base", [*second, 5]) == 0
    assert texts.cache.known("base", [*first, 5]) == texts.cache.known("base", [*third, 5]) == 2 * BLOCK


def test_of_a_long_text_the_end_is_given_away_before_its_beginning() -> None:
    texts = Texts(5)
    tokens = list(range(5 * BLOCK))
    texts.begin("base", tokens, len(tokens))
    texts.end(0, len(tokens))
    texts.begin("base", [900] * 2 * BLOCK, 2 * BLOCK)
    assert texts.cache.known("base", [*tokens, 5]) == 3 * BLOCK


def test_a_tree_that_forgot_all_holds_nothing() -> None:
    tree, draw = Beginnings(2), random.Random(0)
    for place in range(40):
        tree.add("base", [draw.randrange(2) for _ in range(6)], [3 * place, 3 * place + 1, 3 * place + 2])
    for block in range(120):
        tree.forget(block)
    assert not tree._after and not tree._node_of
