"""Attention over forests by torch's flash attention, on a GPU; and that torch's operator is as we call it."""

import pytest
import torch
from torch import Tensor

from luthier.kernels import attention_varlen
from luthier.kernels.attention import AttentionRule, Forest, attend, attend_backward, cases

needs_gpu = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="torch's flash attention needs a GPU of compute capability 8.0",
)
LONG = Forest((0, 700, 1100, 1500, 2300), (-1, 0, 0, -1))
FORESTS = [*(case for case in cases() if case[1].softcap is None), (LONG, AttentionRule(0.125))]


def numbers(
    tensors: list[Tensor], forest: Forest, rule: AttentionRule, sinks_H: Tensor | None
) -> list[Tensor]:
    """Output, log-sum-exp, and the gradients of query, key and value for the last of `tensors`."""
    *inputs, grad = tensors
    out, logsumexp = attend(*inputs, forest, rule, sinks_H)
    made = attend_backward(grad, *inputs, out, logsumexp, forest, rule, sinks_H)
    return [out, logsumexp, *(part for part in made if part is not None)]


@needs_gpu
@pytest.mark.parametrize(("forest", "rule"), FORESTS)
@pytest.mark.parametrize("heads", [(4, 4, 64), (8, 2, 128)])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_flash_attention_is_no_worse_than_plain_attention_in_bf16(
    forest: Forest,
    rule: AttentionRule,
    heads: tuple[int, int, int],
    with_sinks: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    num_heads, num_keys, size = heads
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(forest.starts[-1], number, size, generator=generator).bfloat16()
        for number in (num_heads, num_keys, num_keys, num_heads)
    ]
    sinks_H = torch.linspace(-1, 2, num_heads) if with_sinks else None
    truth = numbers(
        [x.double() for x in tensors], forest, rule, sinks_H if sinks_H is None else sinks_H.double()
    )
    on_gpu, gpu_sinks = [x.cuda() for x in tensors], None if sinks_H is None else sinks_H.cuda()
    assert attention_varlen.supports(*on_gpu[:3], rule)
    ours = numbers(on_gpu, forest, rule, gpu_sinks)
    monkeypatch.setattr(attention_varlen, "supports", lambda *_: False)
    plain = numbers(on_gpu, forest, rule, gpu_sinks)
    for mine, theirs, right in zip(ours, plain, truth, strict=True):
        error, allowed = ((x.cpu().double() - right).norm() for x in (mine, theirs))
        assert error <= 2 * allowed + 0.01 * right.norm()


def test_torchs_backward_takes_what_it_is_given() -> None:
    """It is an operator of torch's own without a promise to stay: called by position, so by order."""
    import torch.nn.attention.varlen  # registers it

    schema = torch.ops.torch_attn._varlen_attn_backward.default._schema
    assert [argument.name for argument in schema.arguments] == [
        "grad_out", "query", "key", "value", "out", "lse", "cu_seq_q", "cu_seq_k", "max_q", "max_k",
        "is_causal", "rng_state", "scale", "window_size",
    ]  # fmt: skip
    assert [str(returned.type) for returned in schema.returns] == ["Tensor"] * 3
