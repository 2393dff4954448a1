"""Attention of one new token per sequence over a cache of blocks.

The cache of a layer is two tensors [blocks, G, S, D], each block holding S tokens' keys or values of every key
head. A sequence is a list of blocks (`table_BN`) and a length, so sequences of any lengths stand side by side
without padding, and those with a common beginning share its blocks. Query heads that share a key head are served
with one reading of it. CPU: C++ for fp32 and bf16 caches; otherwise plain torch, which gathers the blocks first.

Shape suffixes: B sequences, H query heads, G key heads, D head size, N blocks of a sequence, S tokens of a block,
L tokens.
"""

from typing import Any

import torch
from torch import Tensor

from luthier.kernels import native
from luthier.kernels.attention import AttentionRule

_SIGNATURE = "pppppppp iiii iii iiii ff"


def reference(
    query_BHD: Tensor,
    keys_NGSD: Tensor,
    values_NGSD: Tensor,
    table_BN: Tensor,
    length_B: Tensor,
    rule: AttentionRule,
) -> Tensor:
    """The definition, one sequence at a time: [B, H, D]. The new token's key and value are in the cache already."""
    outputs = []
    for query_HD, blocks_N, length in zip(query_BHD, table_BN.long(), length_B.tolist(), strict=True):
        groups = query_HD.shape[0] // keys_NGSD.shape[1]
        first = max(0, length - rule.window) if rule.window is not None else 0
        key_GLD, value_GLD = (
            cache[blocks_N].transpose(0, 1).flatten(1, 2)[:, first:length].to(query_HD.dtype)
            for cache in (keys_NGSD, values_NGSD)
        )
        key_HLD, value_HLD = (t.repeat_interleave(groups, 0) for t in (key_GLD, value_GLD))
        scores_HL = (key_HLD @ query_HD[..., None])[..., 0] * rule.scale
        if rule.softcap is not None:
            scores_HL = torch.tanh(scores_HL / rule.softcap) * rule.softcap
        outputs.append((scores_HL.softmax(-1)[:, None] @ value_HLD)[:, 0])
    return torch.stack(outputs) if outputs else torch.empty_like(query_BHD)


def forward(
    query_BHD: Tensor,
    key_BGD: Tensor,
    value_BGD: Tensor,
    keys_NGSD: Tensor,
    values_NGSD: Tensor,
    table_BN: Tensor,
    length_B: Tensor,
    rule: AttentionRule,
    *,
    out: Tensor,
    longest: int | None = None,
) -> Tensor:
    """Stores each sequence's new key and value as its last token and writes its attention to `out`.

    `length_B` [B] and `table_BN` are int32 and count the new token. Heads lie side by side in their rows. `longest` is
    the greatest length, for callers that know it: on a GPU, asking for it waits until all work before is done.
    """
    found = (
        native.library_for(query_BHD, key_BGD, value_BGD, out) if query_BHD.dtype == torch.float32 else None
    )
    if found is None or native.library_for(keys_NGSD, values_NGSD) is None:
        _store(key_BGD, value_BGD, keys_NGSD, values_NGSD, table_BN, length_B)
        return out.copy_(_gathered(query_BHD, keys_NGSD, values_NGSD, table_BN, length_B, longest, rule))
    name = f"decode_attention_{native.SUFFIX[keys_NGSD.dtype]}"
    tensors = (query_BHD, key_BGD, value_BGD, out, keys_NGSD, values_NGSD, table_BN, length_B)
    found.function(name, _SIGNATURE)(
        *(tensor.data_ptr() for tensor in tensors),
        query_BHD.shape[0],
        query_BHD.shape[1],
        *keys_NGSD.shape[1:2],
        query_BHD.shape[2],
        keys_NGSD.shape[2],
        rule.window or 0,
        table_BN.stride(0),
        *(tensor.stride(0) for tensor in tensors[:4]),
        rule.scale,
        rule.softcap or 0.0,
    )
    return out


def _store(
    key_BGD: Tensor,
    value_BGD: Tensor,
    keys_NGSD: Tensor,
    values_NGSD: Tensor,
    table_BN: Tensor,
    length_B: Tensor,
) -> None:
    token_B, size = length_B.long() - 1, keys_NGSD.shape[2]
    block_B = table_BN.long().gather(1, (token_B // size)[:, None])[:, 0]
    keys_NGSD[block_B, :, token_B % size] = key_BGD.to(keys_NGSD.dtype)
    values_NGSD[block_B, :, token_B % size] = value_BGD.to(values_NGSD.dtype)


def _gathered(
    query_BHD: Tensor,
    keys_NGSD: Tensor,
    values_NGSD: Tensor,
    table_BN: Tensor,
    length_B: Tensor,
    longest: int | None,
    rule: AttentionRule,
) -> Tensor:
    """All sequences at once, their blocks copied side by side."""
    num_rows, heads, size = query_BHD.shape
    wide = torch.promote_types(query_BHD.dtype, torch.float32)
    if longest is None:
        longest = int(length_B.max()) if num_rows else 0
    num_blocks = -(-longest // keys_NGSD.shape[2])
    key_BGLD, value_BGLD = (
        cache[table_BN[:, :num_blocks].long()].transpose(1, 2).flatten(2, 3)
        for cache in (keys_NGSD, values_NGSD)
    )
    grouped_BGJD = query_BHD.reshape(num_rows, key_BGLD.shape[1], -1, size).to(key_BGLD.dtype)
    scores_BGJL = (grouped_BGJD @ key_BGLD.transpose(2, 3)).to(wide) * rule.scale
    if rule.softcap is not None:
        scores_BGJL = torch.tanh(scores_BGJL / rule.softcap) * rule.softcap
    place_L = torch.arange(scores_BGJL.shape[-1], device=query_BHD.device)
    hidden_BL = place_L >= length_B[:, None]
    if rule.window is not None:
        hidden_BL |= place_L < length_B[:, None] - rule.window
    weights_BGJL = scores_BGJL.masked_fill_(hidden_BL[:, None, None], -torch.inf).softmax(-1)
    # blocks are not cleared when they are taken: what lies past a sequence's end may be nan, and 0 · nan is nan
    value_BGLD = value_BGLD.masked_fill(hidden_BL[:, None, :, None], 0)
    return (weights_BGJL.to(value_BGLD.dtype) @ value_BGLD).reshape(num_rows, heads, size)


def cases(dtype: torch.dtype = torch.float64) -> list[dict[str, Any]]:
    """Small caches: lengths from 1 to several blocks, shared blocks, grouped heads, odd sizes, every rule."""
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    made = []
    rules = AttentionRule(0.3), AttentionRule(0.3, window=5), AttentionRule(0.4, window=6, softcap=2.0)
    for heads, key_heads, size, block in ((4, 2, 8, 4), (3, 1, 64, 8), (6, 6, 5, 3), (8, 2, 40, 4)):
        lengths = [1, 4, 5, 2 * block, 3 * block - 1]
        table = torch.arange(len(lengths) * 3, dtype=torch.int32).view(len(lengths), 3)
        table[4, 0] = table[3, 0]  # a common beginning
        num_blocks, num_rows = int(table.max()) + 1, len(lengths)
        made += [
            {
                "query_BHD": normal(num_rows, heads, size),
                "key_BGD": normal(num_rows, key_heads, size),
                "value_BGD": normal(num_rows, key_heads, size),
                "keys_NGSD": normal(num_blocks, key_heads, block, size),
                "values_NGSD": normal(num_blocks, key_heads, block, size),
                "table_BN": table,
                "length_B": torch.tensor(lengths, dtype=torch.int32),
                "rule": rule,
            }
            for rule in rules
        ]
    return made
