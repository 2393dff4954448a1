"""A forest as calls of a kernel that knows documents only: the same numbers, run here with such a kernel by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from luthier.kernels.attention import AttentionRule, Forest, attend, attend_backward, cases
from luthier.kernels.attention_varlen import Part, backward, forward, merge, parts, why_not

CPU = torch.device("cpu")


class VarlenByHand:
    """What the fused kernel computes, document by document."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, part: Part, rule: AttentionRule
    ) -> tuple[Tensor, Tensor]:
        out, logsumexp = torch.zeros_like(query), torch.zeros(query.shape[1], len(query), dtype=query.dtype)
        for q, k, hidden in self._documents(part, rule):
            scores = self._scores(query[q], key[k], rule, hidden)
            logsumexp[:, q] = scores.logsumexp(-1)
            out[q] = torch.einsum("hqk,khd->qhd", scores.softmax(-1), self._repeat(value[k], query))
        return out, logsumexp

    def backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        logsumexp: Tensor,
        part: Part,
        rule: AttentionRule,
    ) -> tuple[Tensor, Tensor, Tensor]:
        query_grad, key_grad, value_grad = (torch.zeros_like(x) for x in (query, key, value))
        delta_HT = (grad * out).sum(-1).t()
        for q, k, hidden in self._documents(part, rule):
            scores = self._scores(query[q], key[k], rule, hidden)
            weights = (scores - logsumexp[:, q, None]).exp()
            weight_grad = torch.einsum("qhd,khd->hqk", grad[q], self._repeat(value[k], query))
            score_grad = weights * (weight_grad - delta_HT[:, q, None]) * rule.scale
            query_grad[q] = torch.einsum("hqk,khd->qhd", score_grad, self._repeat(key[k], query))
            key_grad[k] = self._fold(torch.einsum("hqk,qhd->khd", score_grad, query[q]), key)
            value_grad[k] = self._fold(torch.einsum("hqk,qhd->khd", weights, grad[q]), value)
        return query_grad, key_grad, value_grad

    def _documents(self, part: Part, rule: AttentionRule) -> list[tuple[slice, slice, Tensor]]:
        found = []
        for n in range(len(part.query_starts) - 1):
            (a, b), (c, d) = part.query_starts[n : n + 2].tolist(), part.key_starts[n : n + 2].tolist()
            assert b - a <= part.max_queries and d - c <= part.max_keys
            distance = torch.arange(d - c - (b - a), d - c)[:, None] - torch.arange(d - c)
            hidden = distance < 0 if part.causal else torch.zeros_like(distance, dtype=torch.bool)
            if part.causal and rule.window is not None:
                hidden = hidden | (distance >= rule.window)
            if b > a:
                found.append((slice(a, b), slice(c, d), hidden))
        return found

    def _scores(self, query: Tensor, key: Tensor, rule: AttentionRule, hidden: Tensor) -> Tensor:
        scores = torch.einsum("qhd,khd->hqk", query, self._repeat(key, query)) * rule.scale
        return scores.masked_fill(hidden, -torch.inf)

    def _repeat(self, tensor: Tensor, query: Tensor) -> Tensor:
        return tensor.repeat_interleave(query.shape[1] // tensor.shape[1], 1)

    def _fold(self, grads: Tensor, like: Tensor) -> Tensor:
        return grads.unflatten(1, (like.shape[1], -1)).sum(2)


def _random(num_tokens: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value, grad = (
        torch.randn(num_tokens, heads, 8, generator=generator, dtype=torch.float64) for heads in (4, 2, 2, 4)
    )
    return query, key, value, grad


def _compare(forest: Forest, rule: AttentionRule, sinks: Tensor | None) -> None:
    query, key, value, grad = _random(forest.starts[-1])
    out, logsumexp = forward(query, key, value, forest, rule, sinks, VarlenByHand())
    grads = backward(grad, query, key, value, out, logsumexp, forest, rule, VarlenByHand())
    true_out, true_logsumexp = attend(query, key, value, forest, rule, sinks)
    true_grads = attend_backward(grad, query, key, value, true_out, true_logsumexp, forest, rule, sinks)
    torch.testing.assert_close(out, true_out, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(logsumexp, true_logsumexp, rtol=1e-10, atol=1e-12)
    for mine, right in zip(grads, true_grads[:3], strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("forest", "rule"), [case for case in cases() if case[1].softcap is None])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_calls_make_up_the_forest(forest: Forest, rule: AttentionRule, with_sinks: bool) -> None:
    _compare(forest, rule, torch.linspace(-1, 1, 4, dtype=torch.float64) if with_sinks else None)


@settings(max_examples=40)
@given(st.data())
def test_calls_make_up_any_forest(data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=8))
    lengths[-1] += 1
    parents = [data.draw(st.integers(-1, segment - 1)) for segment in range(len(lengths))]
    starts = tuple(sum(lengths[:segment]) for segment in range(len(lengths) + 1))
    window = data.draw(st.one_of(st.none(), st.integers(1, 12)))
    _compare(Forest(starts, tuple(parents)), AttentionRule(0.4, window), None)


def test_roots_are_one_call_without_copies() -> None:
    for window in (None, 4):
        (part,) = parts(Forest((0, 3, 9), (-1, -1)), window, CPU)
        assert part.query_rows is None and part.key_rows is None and part.causal
        assert part.query_starts.tolist() == part.key_starts.tolist() == [0, 3, 9]
        assert part.max_queries == part.max_keys == 6


def test_a_prompt_is_asked_once_for_all_its_answers() -> None:
    own, below = parts(Forest((0, 5, 8, 12, 14), (-1, 0, 0, -1)), None, CPU)
    assert own.query_starts.tolist() == [0, 5, 8, 12, 14] and own.causal
    assert below.key_rows is not None and below.query_rows is not None and not below.causal
    assert below.key_rows.tolist() == [0, 1, 2, 3, 4]
    assert below.query_rows.tolist() == [5, 6, 7, 8, 9, 10, 11]
    assert below.query_starts.tolist() == [0, 7] and below.key_starts.tolist() == [0, 5]


def test_a_key_is_asked_at_most_once_by_segments_below_it() -> None:
    forest = Forest((0, 4, 6, 9, 10, 12), (-1, 0, 1, 1, 0))
    _, *generations = parts(forest, None, CPU)
    asked = torch.cat([part.key_rows for part in generations if part.key_rows is not None])
    assert len(asked) == len(asked.unique()) == 6
    assert len(generations) == 2


def test_layers_share_the_plan_of_a_forest() -> None:
    forest = Forest((0, 4, 6), (-1, 0))
    assert parts(forest, None, CPU) is parts(forest, None, CPU)
    assert parts(forest, 3, CPU) is not parts(forest, None, CPU)


def test_merge_is_attention_over_both_sets_of_keys() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 5, 9, generator=generator, dtype=torch.float64) * 30
    value = torch.randn(2, 9, 3, generator=generator, dtype=torch.float64)
    whole = (scores.softmax(-1) @ value).transpose(0, 1)
    halves = [
        ((scores[..., s].softmax(-1) @ value[:, s]).transpose(0, 1), scores[..., s].logsumexp(-1))
        for s in (slice(0, 4), slice(4, 9))
    ]
    out, logsumexp = merge(*halves[0], *halves[1])
    torch.testing.assert_close(out, whole, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(logsumexp, scores.logsumexp(-1), rtol=1e-12, atol=1e-14)


def test_the_operators_of_torch_have_the_signatures_that_are_called() -> None:
    import torch.nn.attention.varlen  # registers them

    names = [
        argument.name for argument in torch.ops.torch_attn._varlen_attn_backward.default._schema.arguments
    ]
    assert names == [
        *("grad_out", "query", "key", "value", "out", "lse", "cu_seq_q", "cu_seq_k", "max_q", "max_k"),
        *("is_causal", "rng_state", "scale", "window_size"),
    ]


@pytest.mark.parametrize(
    ("capability", "dtype", "size", "softcapped", "said"),
    [
        ((8, 0), torch.bfloat16, 128, False, ""),
        ((9, 0), torch.float16, 64, False, ""),
        ((7, 5), torch.float16, 64, False, "compute capability 7.5"),
        ((8, 6), torch.float32, 64, False, "float32"),
        ((8, 6), torch.bfloat16, 36, False, "36 features"),
        ((8, 6), torch.bfloat16, 512, False, "512 features"),
        ((8, 6), torch.bfloat16, 256, True, "caps"),
    ],
)
def test_who_does_without_flash_attention_is_told_why(
    capability: tuple[int, int], dtype: torch.dtype, size: int, softcapped: bool, said: str
) -> None:
    found = why_not(capability, dtype, size, softcapped)
    assert said in found and bool(found) == bool(said)
