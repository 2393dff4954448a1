"""Laws of attention over any forest: documents are alone in a pack, sharing changes nothing, the same bits again."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from luthier.kernels import native
from luthier.kernels.attention import AttentionRule, Forest, attend, attend_backward

HEADS, KV_HEADS, SIZE = 6, 2, 20
Result = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


@st.composite
def forests(draw: st.DrawFn) -> Forest:
    """Up to five segments of up to 130 tokens, chained and branching at will."""
    num_segments = draw(st.integers(1, 5))
    lengths = draw(
        st.lists(
            st.one_of(st.integers(0, 8), st.integers(90, 130)), min_size=num_segments, max_size=num_segments
        )
    )
    parents = [draw(st.integers(-1, segment - 1)) for segment in range(num_segments)]
    starts = [sum(lengths[:segment]) for segment in range(num_segments + 1)]
    return Forest(tuple(starts), tuple(parents))


rules = st.builds(
    AttentionRule,
    scale=st.sampled_from([0.1, 0.4]),
    window=st.one_of(st.none(), st.integers(1, 250)),
    softcap=st.sampled_from([None, 3.0]),
)


def _random(num_tokens: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Query, key, value and the gradient of the output."""
    generator = torch.Generator().manual_seed(seed)
    heads = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    return tuple(torch.randn(num_tokens, h, SIZE, generator=generator).to(dtype) for h in heads)


def _run(tensors: tuple[Tensor, ...], forest: Forest, rule: AttentionRule) -> Result:
    query, key, value, grad = tensors
    out, logsumexp = attend(query, key, value, forest, rule)
    query_grad, key_grad, value_grad, _ = attend_backward(
        grad, query, key, value, out, logsumexp, forest, rule
    )
    return out, logsumexp.t(), query_grad, key_grad, value_grad


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _trees(forest: Forest) -> list[list[int]]:
    trees: dict[int, list[int]] = {}
    for segment in range(len(forest.parents)):
        root = segment
        while forest.parents[root] >= 0:
            root = forest.parents[root]
        trees.setdefault(root, []).append(segment)
    return list(trees.values())


def _rows(forest: Forest, segments: list[int]) -> Tensor:
    return torch.cat([torch.arange(forest.starts[s], forest.starts[s + 1]) for s in segments])


@settings(max_examples=30)
@given(forests(), rules, st.sampled_from([1, 2, 3]))
def test_native_equals_plain_torch_in_fp64(forest: Forest, rule: AttentionRule, threads: int) -> None:
    tensors = _random(forest.starts[-1])
    with _threads(threads):
        ours = _run(tensors, forest, rule)
    truth = _run(tuple(x.double() for x in tensors), forest, rule)
    for mine, right in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=2e-5, atol=2e-5)
        # where a token sees only itself, exact gradients are zero: differences of numbers as large as `grad`
        scale = float(right.norm()) + float(tensors[3].norm())
        assert float((mine.double() - right).norm()) <= 1e-6 * scale


@settings(max_examples=15)
@given(forests(), rules)
def test_trees_of_a_pack_equal_trees_alone(forest: Forest, rule: AttentionRule) -> None:
    tensors = _random(forest.starts[-1])
    with _threads(1):
        packed = _run(tensors, forest, rule)
        for segments in _trees(forest):
            rows = _rows(forest, segments)
            lengths = [forest.starts[s + 1] - forest.starts[s] for s in segments]
            starts = [sum(lengths[:i]) for i in range(len(segments) + 1)]
            parents = [segments.index(p) if (p := forest.parents[s]) >= 0 else -1 for s in segments]
            alone = _run(tuple(x[rows] for x in tensors), Forest(tuple(starts), tuple(parents)), rule)
            for mine, right in zip(packed, alone, strict=True):
                assert torch.equal(mine[rows], right)


@settings(max_examples=15)
@given(forests(), rules)
def test_a_shared_prefix_equals_a_prefix_for_everybody(forest: Forest, rule: AttentionRule) -> None:
    """Each leaf's line laid out as one document of its own; the prefix's gradients are the sums over them."""
    tensors = _random(forest.starts[-1], dtype=torch.float64)
    shared = _run(tensors, forest, rule)
    summed = [torch.zeros_like(x) for x in (shared[2], shared[3], shared[4])]
    for segment in range(len(forest.parents)):
        line = [segment]
        while forest.parents[line[0]] >= 0:
            line.insert(0, forest.parents[line[0]])
        rows = _rows(forest, line)
        query, key, value, grad = (x[rows] for x in tensors)
        own = forest.starts[segment + 1] - forest.starts[segment]
        grad[: len(rows) - own] = 0  # each segment's own tokens are scored once, in its own line
        alone = _run((query, key, value, grad), Forest((0, len(rows)), (-1,)), rule)
        torch.testing.assert_close(shared[0][rows], alone[0], rtol=1e-9, atol=1e-11)
        for total, part in zip(summed, alone[2:], strict=True):
            total[rows] += part
    for mine, right in zip(shared[2:], summed, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@settings(max_examples=8)
@given(forest=forests(), rule=rules, data=st.data())
def test_gradients_off_the_path_are_exactly_zero(
    dtype: torch.dtype, forest: Forest, rule: AttentionRule, data: st.DataObject
) -> None:
    """One segment's gradient reaches its own line and nothing else, not even as rounding."""
    segment = data.draw(st.integers(0, len(forest.parents) - 1))
    query, key, value, grad = _random(forest.starts[-1], dtype=dtype)
    own, line = _rows(forest, [segment]), [segment]
    while forest.parents[line[-1]] >= 0:
        line.append(forest.parents[line[-1]])
    only = torch.zeros_like(grad)
    only[own] = grad[own]
    _, _, query_grad, key_grad, value_grad = _run((query, key, value, only), forest, rule)
    off_path = torch.ones(forest.starts[-1], dtype=torch.bool)
    off_path[_rows(forest, line)] = False
    not_own = torch.ones_like(off_path)
    not_own[own] = False
    assert not query_grad[not_own].any()
    assert not key_grad[off_path].any() and not value_grad[off_path].any()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@settings(max_examples=8)
@given(forest=forests(), rule=rules, data=st.data())
def test_what_is_not_finite_stays_in_its_tree(
    bad: float, dtype: torch.dtype, forest: Forest, rule: AttentionRule, data: st.DataObject
) -> None:
    tensors = _random(forest.starts[-1], dtype=dtype)
    before = _run(tensors, forest, rule)
    trees = _trees(forest)
    number = data.draw(st.integers(0, len(trees) - 1))
    sick = _rows(forest, trees[number])
    for tensor in tensors:
        tensor[sick] = bad
    after = _run(tensors, forest, rule)
    healthy = torch.ones(forest.starts[-1], dtype=torch.bool)
    healthy[sick] = False
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[healthy], new[healthy])
    assert not bool(after[0][sick].isfinite().any())


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_every_time(threads: int) -> None:
    forest = Forest((0, 500, 640, 800, 1100), (-1, 0, 0, -1))
    tensors = _random(1100)
    with _threads(threads):
        first = _run(tensors, forest, AttentionRule(0.2))
        for _ in range(3):
            again = _run(tensors, forest, AttentionRule(0.2))
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_the_compiled_path_is_the_one_tested_here() -> None:
    if native.library() is None:
        pytest.skip(native.reason())
    query = _random(4)[0]
    assert native.library_for(query, query.bfloat16()) is None and native.library_for(query) is not None


def test_a_forest_that_does_not_fit_the_tensors_is_refused() -> None:
    tensors = _random(10)
    with pytest.raises(AssertionError):
        attend(*tensors[:3], Forest((0, 11), (-1,)), AttentionRule(0.3))
