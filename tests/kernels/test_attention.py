"""Attention over segments equals the dense-mask definition, in value and gradient, on every layout."""

import pytest
import torch

from luthier.kernels.attention import AttentionRule, Forest, cases, dense_mask, forest_attention, reference


def _inputs(forest: Forest, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    num_tokens = forest.starts[-1]
    sizes = ((4, num_tokens, 8), (2, num_tokens, 8), (2, num_tokens, 8))
    return tuple(torch.randn(size, generator=generator, dtype=dtype).requires_grad_() for size in sizes)


@pytest.mark.parametrize(("forest", "rule"), cases())
@pytest.mark.parametrize("with_sinks", [False, True])
def test_segment_loop_equals_dense_mask(forest: Forest, rule: AttentionRule, with_sinks: bool) -> None:
    sinks = torch.randn(4, dtype=torch.float64) if with_sinks else None
    results = []
    for attend in (forest_attention, reference):
        inputs = _inputs(forest, torch.float64)
        out = attend(*inputs, forest, rule, sinks)
        weight = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
        results.append((out, *torch.autograd.grad((out * weight).sum(), inputs)))
    for ours, truth in zip(*results, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-10, atol=1e-11)


def test_mask_is_one_block_per_document_without_ancestors() -> None:
    mask = dense_mask(Forest((0, 2, 5), (-1, -1)))
    assert torch.equal(mask, torch.block_diag(torch.ones(2, 2).tril(), torch.ones(3, 3).tril()).bool())


def test_child_sees_its_ancestors_and_not_its_sibling() -> None:
    mask = dense_mask(Forest((0, 3, 5, 7), (-1, 0, 0)))
    assert mask[6].tolist() == [True, True, True, False, False, True, True]


def test_no_document_can_change_another() -> None:
    forest = Forest((0, 5, 11), (-1, -1))
    inputs = _inputs(forest, torch.float32)
    before = forest_attention(*inputs, forest, AttentionRule(0.3))
    with torch.no_grad():
        for tensor in inputs:
            tensor[:, :5] += 7
    after = forest_attention(*inputs, forest, AttentionRule(0.3))
    assert torch.equal(before[5:], after[5:])


@pytest.mark.parametrize(("forest", "rule"), cases())
def test_bf16_error_is_at_most_twice_that_of_plain_torch(forest: Forest, rule: AttentionRule) -> None:
    inputs = [t.detach() for t in _inputs(forest, torch.bfloat16)]
    truth = reference(*(t.double() for t in inputs), forest, rule)
    plain = (reference(*inputs, forest, rule).double() - truth).norm()
    ours = (forest_attention(*inputs, forest, rule).double() - truth).norm()
    assert ours <= 2 * plain
