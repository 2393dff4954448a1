"""The cache layer with room holds what transformers' own layer holds, whatever is done to both."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from luthier.rollout.roomy import MIN_ROOM, RoomyLayer, make_room

STEPS = st.one_of(
    st.tuples(st.just("update"), st.integers(1, 3)),
    st.tuples(st.just("update"), st.just(2 * MIN_ROOM)),
    st.tuples(st.just("reorder_cache"), st.lists(st.integers(0, 50), min_size=1, max_size=4)),
    st.tuples(st.just("batch_select_indices"), st.lists(st.integers(0, 50), min_size=1, max_size=4)),
    st.tuples(st.just("batch_repeat_interleave"), st.just(2)),
    st.tuples(st.just("crop"), st.just(-1)),
)


def states(rows: int, tokens: int, random: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 2, tokens, 3, generator=random), torch.randn(
        rows, 2, tokens, 5, generator=random
    )


@settings(deadline=None, max_examples=100)
@given(st.lists(STEPS, max_size=12))
def test_it_holds_what_the_plain_layer_holds(steps) -> None:
    random = torch.Generator().manual_seed(0)
    plain, roomy = DynamicLayer(), RoomyLayer()
    first = states(3, 4, random)
    plain.update(*first)
    roomy.update(*first)
    for name, value in steps:
        if name == "update":
            new = states(plain.keys.shape[0], value, random)
            for ours, theirs in zip(roomy.update(*new), plain.update(*new), strict=True):
                assert torch.equal(ours, theirs)
        else:
            if isinstance(value, list):
                value = torch.tensor(value) % plain.keys.shape[0]
            getattr(plain, name)(value)
            getattr(roomy, name)(value)
        assert roomy.get_seq_length() == plain.get_seq_length()
        assert torch.equal(roomy.keys, plain.keys) and torch.equal(roomy.values, plain.values)
        if not plain.get_seq_length():
            break  # cropped away: transformers' own layer cannot go on from there


def test_a_token_is_written_in_place() -> None:
    random = torch.Generator().manual_seed(0)
    layer = RoomyLayer()
    layer.update(*states(2, 5, random))
    where = layer.keys.data_ptr()
    for _ in range(MIN_ROOM):
        layer.update(*states(2, 1, random))
    assert layer.keys.data_ptr() == where and layer.get_seq_length() == 5 + MIN_ROOM


def test_only_layers_that_keep_every_token_are_given_room() -> None:
    random = torch.Generator().manual_seed(0)
    cache = DynamicCache()
    cache.layers = [DynamicLayer(), DynamicSlidingWindowLayer(sliding_window=4)]
    new = states(2, 5, random)
    for layer in range(2):
        cache.update(*new, layer)
    make_room(cache)
    assert [type(layer) for layer in cache.layers] == [RoomyLayer, DynamicSlidingWindowLayer]
    assert torch.equal(cache.layers[0].keys, new[0]) and cache.get_seq_length() == 5
