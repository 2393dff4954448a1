"""Attention over segments equals the dense-mask definition, in value and gradient, on every layout and every path."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
from torch import Tensor

from luthier.kernels import attention, attention_tiled, native
from luthier.kernels.attention import (
    AttentionRule,
    Forest,
    attend,
    attend_backward,
    cases,
    dense_mask,
    forest_attention,
    reference,
)

HEADS = ((4, 2, 8, 8), (3, 3, 5, 5), (6, 1, 24, 16))  # query heads, key heads, size of keys, size of values
PATHS = {"native": nullcontext, "plain torch": native.disabled}
Path = Callable[[], AbstractContextManager[None]]


def _inputs(
    forest: Forest, dtype: torch.dtype, heads: tuple[int, int, int, int] = HEADS[0]
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    num_tokens, (num_heads, num_kv, key_size, value_size) = forest.starts[-1], heads
    sizes = (
        (num_heads, num_tokens, key_size),
        (num_kv, num_tokens, key_size),
        (num_kv, num_tokens, value_size),
    )
    return tuple(
        torch.randn(size, generator=generator).to(torch.bfloat16).to(dtype).requires_grad_() for size in sizes
    )


def _sinks(num_heads: int, dtype: torch.dtype) -> Tensor:
    return torch.linspace(-1, 2, num_heads).to(dtype).requires_grad_()


def _value_and_gradients(
    attend: Callable[..., Tensor],
    inputs: tuple[Tensor, ...],
    forest: Forest,
    rule: AttentionRule,
    sinks: Tensor | None,
) -> list[Tensor]:
    out = attend(*inputs, forest, rule, sinks)
    wanted = inputs if sinks is None else (*inputs, sinks)
    return [out.detach(), *torch.autograd.grad((out * _weight(out)).sum(), wanted)]


def _weight(out: Tensor) -> Tensor:
    return torch.sin(torch.arange(out.numel(), dtype=torch.float64)).to(out.dtype).view_as(out)


@pytest.mark.parametrize(("forest", "rule"), cases())
@pytest.mark.parametrize("with_sinks", [False, True])
@pytest.mark.parametrize("most_queries", [3, 40, 512])
def test_fp64_equals_dense_mask(
    forest: Forest,
    rule: AttentionRule,
    with_sinks: bool,
    most_queries: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention_tiled, "MAX_QUERIES", most_queries)
    sinks = _sinks(4, torch.float64) if with_sinks else None
    inputs = _inputs(forest, torch.float64)
    ours = _value_and_gradients(forest_attention, inputs, forest, rule, sinks)
    truth = _value_and_gradients(reference, inputs, forest, rule, sinks)
    for mine, right in zip(ours, truth, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize(("forest", "rule"), cases())
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_fp32_equals_dense_mask_in_fp64(
    forest: Forest, rule: AttentionRule, heads: tuple[int, int, int, int], path: Path
) -> None:
    sinks = _sinks(heads[0], torch.float32)
    inputs = _inputs(forest, torch.float32, heads)
    with path():
        ours = _value_and_gradients(forest_attention, inputs, forest, rule, sinks)
    exact = tuple(x.detach().double().requires_grad_() for x in (*inputs, sinks))
    truth = _value_and_gradients(reference, exact[:3], forest, rule, exact[3])
    for mine, right in zip(ours, truth, strict=True):
        assert float((mine.double() - right).norm() / right.norm()) < 2e-6


@pytest.mark.parametrize(("forest", "rule"), cases())
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_bf16_error_is_at_most_twice_that_of_plain_torch(
    forest: Forest, rule: AttentionRule, path: Path
) -> None:
    sinks = _sinks(4, torch.bfloat16)
    inputs = _inputs(forest, torch.bfloat16)
    with path():
        ours = _value_and_gradients(forest_attention, inputs, forest, rule, sinks)
    plain = _value_and_gradients(reference, inputs, forest, rule, sinks)
    exact = tuple(x.detach().double().requires_grad_() for x in (*inputs, sinks))
    truth = _value_and_gradients(reference, exact[:3], forest, rule, exact[3])
    for mine, theirs, right in zip(ours[:4], plain[:4], truth[:4], strict=True):
        assert (mine.double() - right).norm() <= 2 * (theirs.double() - right).norm()
    # The sinks' gradient is made from the rounded output. It is only four numbers, and plain torch hits them by
    # chance now and then; so what the rounding of the output alone can do is allowed as well.
    weight_HT = (
        exact[3][:, None] - attend(*(x.transpose(0, 1) for x in exact[:3]), forest, rule, exact[3])[1]
    ).exp()
    rounding = 2**-8 * (weight_HT * (_weight(truth[0]) * truth[0]).abs().sum(-1).t()).sum(1).norm()
    allowed = torch.maximum(2 * (plain[4].double() - truth[4]).norm(), rounding)
    assert (ours[4].double() - truth[4]).norm() <= allowed


@pytest.mark.parametrize("rule", [AttentionRule(0.4), AttentionRule(0.4, window=3, softcap=1.5)])
def test_gradcheck(rule: AttentionRule) -> None:
    forest = Forest((0, 3, 5, 7), (-1, 0, -1))
    inputs = (*_inputs(forest, torch.float64, (2, 1, 3, 2)), _sinks(2, torch.float64))
    assert torch.autograd.gradcheck(lambda q, k, v, s: forest_attention(q, k, v, forest, rule, s), inputs)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reads_and_writes_slices_of_wider_buffers(path: Path, dtype: torch.dtype) -> None:
    forest, rule = Forest((0, 40, 100, 130), (-1, 0, -1)), AttentionRule(0.3)
    query, key, value = (x.detach().transpose(0, 1).contiguous() for x in _inputs(forest, dtype))
    grad = torch.randn_like(query)
    qkv = torch.cat([x.flatten(1) for x in (query, key, value)], 1)
    grads, wide_out = torch.full((130, 67), 7.0, dtype=dtype), torch.full((130, 41), 7.0, dtype=dtype)
    views = [part.unflatten(1, (-1, 8)) for part in qkv.split((32, 16, 16), 1)]
    grad_views = [part.unflatten(1, (-1, 8)) for part in grads[:, :64].split((32, 16, 16), 1)]
    out_view = wide_out[:, :32].unflatten(1, (4, 8))
    with path():
        out, logsumexp = attend(query, key, value, forest, rule)
        made = attend_backward(grad, query, key, value, out, logsumexp, forest, rule)
        same, same_logsumexp = attend(*views, forest, rule, out=out_view)
        names = dict(zip(("query_grad", "key_grad", "value_grad"), grad_views, strict=True))
        attend_backward(grad, *views, out_view, same_logsumexp, forest, rule, **names)
    assert same is out_view and torch.equal(same, out) and torch.equal(logsumexp, same_logsumexp)
    for mine, right in zip(grad_views, made[:3], strict=True):
        assert torch.equal(mine, right)
    assert bool((wide_out[:, 32:] == 7).all()) and bool((grads[:, 64:] == 7).all())


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_log_sum_exp_is_that_of_the_visible_scores(path: Path) -> None:
    forest, rule = Forest((0, 6, 9, 13), (-1, 0, 0)), AttentionRule(0.3, window=5, softcap=1.0)
    inputs = [x.detach().transpose(0, 1) for x in _inputs(forest, torch.float32, (2, 2, 8, 8))]
    sinks = _sinks(2, torch.float32)
    with path():
        _, logsumexp = attend(*inputs, forest, rule, sinks)
    scores = torch.einsum("qhd,khd->hqk", inputs[0], inputs[1]).mul(0.3).tanh()
    scores = scores.masked_fill(~dense_mask(forest, 5), -torch.inf)
    with_sink = torch.cat([scores, sinks[:, None, None].expand(2, 13, 1)], -1)
    torch.testing.assert_close(logsumexp, with_sink.logsumexp(-1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@pytest.mark.parametrize("forest", [Forest((0,), ()), Forest((0, 0, 0), (-1, 0))])
def test_no_tokens_at_all(forest: Forest, path: Path) -> None:
    inputs = _inputs(forest, torch.float32)
    with path():
        out, *grads = _value_and_gradients(forest_attention, inputs, forest, AttentionRule(0.3), None)
    assert out.shape == (0, 4, 8)
    assert [grad.shape for grad in grads] == [(4, 0, 8), (2, 0, 8), (2, 0, 8)]


def test_scores_far_out_of_range_stay_finite() -> None:
    forest = Forest((0, 100), (-1,))
    query, key, value = _inputs(forest, torch.float32)
    inputs = (
        (query * 300).detach().requires_grad_(),
        (key * 300).detach().requires_grad_(),
        value,
    )
    ours = _value_and_gradients(forest_attention, inputs, forest, AttentionRule(1.0), None)
    truth = _value_and_gradients(
        reference,
        tuple(x.detach().double().requires_grad_() for x in inputs),
        forest,
        AttentionRule(1.0),
        None,
    )
    torch.testing.assert_close(ours[0].double(), truth[0], rtol=1e-4, atol=1e-4)
    assert all(bool(x.isfinite().all()) for x in ours)


def test_long_bf16_documents_go_through_matrix_units_where_there_are_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "LONG_DOCUMENT", 200)
    monkeypatch.setattr(attention_tiled, "MAX_QUERIES", 96)
    forest = Forest((0, 300, 320, 350), (-1, 0, -1))
    rule, inputs = AttentionRule(0.3), _inputs(forest, torch.bfloat16)
    native_result = _value_and_gradients(forest_attention, inputs, forest, rule, None)
    monkeypatch.setattr(attention.processor, "has_matrix_units", lambda: True)
    monkeypatch.setattr(
        attention.attention_native, "forward", lambda *_: pytest.fail("not by matrix products")
    )
    products = _value_and_gradients(forest_attention, inputs, forest, rule, None)
    plain = _value_and_gradients(reference, inputs, forest, rule, None)
    exact = tuple(x.detach().double().requires_grad_() for x in inputs)
    truth = _value_and_gradients(reference, exact, forest, rule, None)
    for mine, by_native, theirs, right in zip(products, native_result, plain, truth, strict=True):
        bound = 2 * (theirs.double() - right).norm()
        assert (mine.double() - right).norm() <= bound
        assert (by_native.double() - right).norm() <= bound


def test_dropout_drops_weights_and_keeps_their_mean() -> None:
    forest, inputs = Forest((0, 30, 50, 60), (-1, 0, -1)), _inputs(Forest((0, 60), (-1,)), torch.float32)
    torch.manual_seed(0)
    with torch.no_grad():
        whole = forest_attention(*inputs, forest, AttentionRule(0.3))
        dropped = [forest_attention(*inputs, forest, AttentionRule(0.3, dropout=0.3)) for _ in range(200)]
        hand = [
            forest_attention(*inputs, forest, AttentionRule(0.3, dropout=0.3), torch.full((4,), -1e9))
            for _ in range(200)
        ]
    for samples in (torch.stack(dropped), torch.stack(hand)):
        assert not torch.equal(samples[0], samples[1])
        standard_error = samples.std(0) / len(samples) ** 0.5
        assert float(((samples.mean(0) - whole) / (standard_error + 1e-6)).abs().max()) < 6


def test_mask_is_one_block_per_document_without_ancestors() -> None:
    mask = dense_mask(Forest((0, 2, 5), (-1, -1)))
    assert torch.equal(mask, torch.block_diag(torch.ones(2, 2).tril(), torch.ones(3, 3).tril()).bool())


def test_child_sees_its_ancestors_and_not_its_sibling() -> None:
    mask = dense_mask(Forest((0, 3, 5, 7), (-1, 0, 0)))
    assert mask[6].tolist() == [True, True, True, False, False, True, True]


def test_the_windows_that_were_asked_for_are_noted() -> None:
    forest = Forest((0, 4), (-1,))
    inputs = _inputs(forest, torch.float32)
    for rule in (AttentionRule(1.0), AttentionRule(1.0, window=3), AttentionRule(1.0, window=2, dropout=0.5)):
        forest_attention(*inputs, forest, rule)
    assert forest.windows == {None, 3, 2}
