"""Attention over a forest by a GPU's fused kernel for documents laid end to end, which knows nothing of forests.

Without a window, a forest becomes a few calls of that kernel, each over every token at most once:

- one for all segments by themselves, causal;
- one for each generation: the descendants of a segment, all together, against the keys of that segment, unmasked.

Parts that saw different keys of the same query are merged by their log-sum-exp (`merge`). For the backward, each part
is told the merged output and log-sum-exp; its gradients are then already the right ones, and every key belongs to
one part of each kind only, so they are simply added. With a window, only the keys just before a segment are seen:
they are put in front of its own, and one causal call does it all.

Shape suffixes: T tokens, H query heads, K key/value heads, D head size.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from luthier.kernels.forest import AttentionRule, Forest


@dataclass(frozen=True)
class Part:
    """One call over documents laid end to end: which tokens ask, which are asked, and how they belong together."""

    query_rows: Tensor | None
    """Tokens that ask, in the order of the call; None: all, in their own order."""
    key_rows: Tensor | None
    query_starts: Tensor
    """Starts of the documents among the asking tokens, int32, the total at the end."""
    key_starts: Tensor
    max_queries: int
    max_keys: int
    causal: bool
    """The last query of a document sees up to its last key, the one before up to the last but one, and so on."""


class Varlen(Protocol):
    """A fused attention kernel for documents laid end to end."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, part: Part, rule: AttentionRule
    ) -> tuple[Tensor, Tensor]:
        """Output [T, H, D] and log-sum-exp [H, T] in fp32."""
        ...

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
        """Gradients of query, key and value, given the output and log-sum-exp over all keys, of this part or not."""
        ...


class TorchVarlen:
    """The flash attention that torch brings for CUDA (`torch.nn.attention.varlen`)."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, part: Part, rule: AttentionRule
    ) -> tuple[Tensor, Tensor]:
        from torch.nn.attention.varlen import AuxRequest, varlen_attn

        out, logsumexp = varlen_attn(
            query,
            key,
            value,
            part.query_starts,
            part.key_starts,
            part.max_queries,
            part.max_keys,
            return_aux=AuxRequest(lse=True),
            scale=rule.scale,
            window_size=_window(part, rule),
            enable_gqa=query.shape[1] != key.shape[1],
        )
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
        import torch.nn.attention.varlen  # registers the operator

        window = _window(part, rule)
        return torch.ops.torch_attn._varlen_attn_backward(
            grad,
            query,
            key,
            value,
            out,
            logsumexp.contiguous(),
            part.query_starts,
            part.key_starts,
            part.max_queries,
            part.max_keys,
            window == (-1, 0),
            torch.zeros(2, dtype=torch.uint64, device=query.device),  # state of the dropout that there is not
            rule.scale,
            list(window),
        )


def _window(part: Part, rule: AttentionRule) -> tuple[int, int]:
    """How many keys before and after its own position a query sees, -1 for all of them."""
    if not part.causal:
        return -1, -1
    return (-1 if rule.window is None else rule.window - 1), 0


def supports(query: Tensor, key: Tensor, value: Tensor, rule: AttentionRule) -> bool:
    """Whether torch's flash attention can do this."""
    if not query.is_cuda or not query.shape[2] == key.shape[2] == value.shape[2]:
        return False
    capability = torch.cuda.get_device_capability(query.device)
    return not why_not(capability, query.dtype, query.shape[2], rule.softcap is not None)


def why_not(capability: tuple[int, int], dtype: torch.dtype, head_size: int, softcapped: bool) -> str:
    """What keeps torch's flash attention from a model on a GPU of this compute capability; empty: nothing."""
    if capability < (8, 0):
        return f"this GPU has compute capability {capability[0]}.{capability[1]}, and it needs 8.0 (Ampere)"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"the model is in {str(dtype).split('.')[1]}, and it needs 16 bit (model.dtype: bfloat16)"
    if head_size > 256 or head_size % 8:
        return f"heads have {head_size} features, and it takes multiples of 8 up to 256"
    return "the model caps its attention scores, which it does not know" if softcapped else ""


def forward(
    query_THD: Tensor,
    key_TKD: Tensor,
    value_TKD: Tensor,
    forest: Forest,
    rule: AttentionRule,
    sinks_H: Tensor | None,
    varlen: Varlen,
) -> tuple[Tensor, Tensor]:
    """Output [T, H, D] and log-sum-exp [H, T]."""
    first, *others = parts(forest, rule.window, query_THD.device)
    out_THD, logsumexp_HT = varlen.forward(
        query_THD, _rows(key_TKD, first.key_rows), _rows(value_TKD, first.key_rows), first, rule
    )
    for part in others:
        assert part.query_rows is not None
        rows = part.query_rows
        of_part = varlen.forward(
            query_THD[rows], _rows(key_TKD, part.key_rows), _rows(value_TKD, part.key_rows), part, rule
        )
        out_THD[rows], logsumexp_HT[:, rows] = merge(out_THD[rows], logsumexp_HT[:, rows], *of_part)
    if sinks_H is not None:  # a part without values
        sinks_HT = sinks_H.to(logsumexp_HT.dtype)[:, None].expand_as(logsumexp_HT)
        out_THD, logsumexp_HT = merge(out_THD, logsumexp_HT, torch.zeros_like(out_THD), sinks_HT)
    return out_THD, logsumexp_HT


def backward(
    grad_THD: Tensor,
    query_THD: Tensor,
    key_TKD: Tensor,
    value_TKD: Tensor,
    out_THD: Tensor,
    logsumexp_HT: Tensor,
    forest: Forest,
    rule: AttentionRule,
    varlen: Varlen,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    grads = []
    for part in parts(forest, rule.window, query_THD.device):
        query, grad, out = (_rows(t, part.query_rows) for t in (query_THD, grad_THD, out_THD))
        key, value = _rows(key_TKD, part.key_rows), _rows(value_TKD, part.key_rows)
        logsumexp = logsumexp_HT if part.query_rows is None else logsumexp_HT[:, part.query_rows]
        of_part = varlen.backward(grad, query, key, value, out, logsumexp, part, rule)
        grads.append((of_part, (part.query_rows, part.key_rows, part.key_rows)))
    inputs = (query_THD, key_TKD, value_TKD)
    sums = [_sum([(g[i], rows[i]) for g, rows in grads], inputs[i]) for i in range(3)]
    return sums[0], sums[1], sums[2]


def merge(out1: Tensor, logsumexp1: Tensor, out2: Tensor, logsumexp2: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys, from the attention over each: [T, H, D] and [H, T].

    With weights w_i = exp(lse_i - lse), lse = log(exp(lse_1) + exp(lse_2)): out = w_1 out_1 + w_2 out_2.
    """
    logsumexp = torch.logaddexp(logsumexp1, logsumexp2)
    weight1, weight2 = ((part - logsumexp).exp().t()[..., None] for part in (logsumexp1, logsumexp2))
    return (out1 * weight1 + out2 * weight2).to(out1.dtype), logsumexp


def parts(forest: Forest, window: int | None, device: torch.device) -> list[Part]:
    """The calls that attention over this forest is made of, worked out once for all layers."""
    name = ("varlen", window, device)
    if name not in forest.layouts:
        made = _windowed(forest, window, device) if window is not None else _generations(forest, device)
        forest.layouts[name] = list(made)
    return forest.layouts[name]


Spans = list[tuple[int, int]]


def _generations(forest: Forest, device: torch.device) -> Iterator[Part]:
    spans = list(zip(forest.starts[:-1], forest.starts[1:], strict=True))
    yield _part([([span], [span]) for span in spans], forest, device, causal=True)
    lines = [_line(forest, segment) for segment in range(len(spans))]
    for depth in range(1, max(map(len, lines))):
        below: dict[int, Spans] = {}
        for segment, line in enumerate(lines):
            if len(line) > depth and spans[segment][0] < spans[segment][1]:
                below.setdefault(line[depth - 1], []).append(spans[segment])
        documents = [
            (asking, [spans[asked]]) for asked, asking in below.items() if spans[asked][0] < spans[asked][1]
        ]
        if documents:
            yield _part(documents, forest, device, causal=False)


def _windowed(forest: Forest, window: int, device: torch.device) -> Iterator[Part]:
    documents: list[tuple[Spans, Spans]] = []
    for start, stop, ancestors in forest.spans():
        before, missing = [(start, stop)], window - 1
        for first, last in reversed(ancestors):
            taken = min(missing, last - first)
            if taken > 0:
                before.insert(0, (last - taken, last))
            missing -= taken
        documents.append(([(start, stop)], before))
    yield _part(documents, forest, device, causal=True)


def _line(forest: Forest, segment: int) -> list[int]:
    """A segment and its ancestors, the root first."""
    line = [segment]
    while forest.parents[line[0]] >= 0:
        line.insert(0, forest.parents[line[0]])
    return line


def _part(documents: list[tuple[Spans, Spans]], forest: Forest, device: torch.device, causal: bool) -> Part:
    query_rows, query_starts, max_queries = _lay_out([asking for asking, _ in documents])
    key_rows, key_starts, max_keys = _lay_out([asked for _, asked in documents])
    everything = torch.arange(forest.starts[-1])

    def moved(rows: Tensor) -> Tensor | None:
        return None if torch.equal(rows, everything) else rows.to(device)

    return Part(
        moved(query_rows),
        moved(key_rows),
        query_starts.to(device),
        key_starts.to(device),
        max_queries,
        max_keys,
        causal,
    )


def _lay_out(documents: list[Spans]) -> tuple[Tensor, Tensor, int]:
    """Rows of the documents' spans end to end, where each document starts among them, and the longest one."""
    rows = torch.cat([torch.arange(start, stop) for spans in documents for start, stop in spans])
    lengths = [sum(stop - start for start, stop in spans) for spans in documents]
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return rows, starts, max(lengths)


def _rows(tensor: Tensor, rows: Tensor | None) -> Tensor:
    return tensor if rows is None else tensor[rows]


def _sum(pieces: list[tuple[Tensor, Tensor | None]], like: Tensor) -> Tensor:
    """Gradients of the parts, put where their rows are and added in fp32 at least."""
    if len(pieces) == 1 and pieces[0][1] is None:
        return pieces[0][0]
    total = torch.zeros(like.shape, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
    for piece, rows in pieces:
        if rows is None:
            total += piece
        else:  # sorted by row before it is added, so the same bits every time
            total.index_put_((rows,), piece.to(total.dtype), accumulate=True)
    return total.to(like.dtype)
