"""Frozen weights in few bits, by the names of bitsandbytes and its like."""

from luthier.migrate.draft import Draft
from luthier.migrate.findings import Kind

_OF_FOUR = {"nf4": "nf4", "fp4": "fp4"}
_HQQ = (1, 2, 3, 4, 5, 6, 8)


def put_quant(
    draft: Draft, key: str, bits: int, *, kind: str = "nf4", double: bool = True, method: str = "bnb"
) -> None:
    """Sets the section `quant`: weights in so many bits. Without adapters there is nothing frozen to store.

    Args:
        kind: of 4-bit numbers, in the words of bitsandbytes.
        double: whether scales are stored in 8 bits, too.
        method: the library, in the words of LLaMA-Factory (`bnb`, `hqq`, `eetq`).
    """
    if not draft.has("lora"):
        draft.none(key, "has no effect here: all weights are tuned, and those of few bits cannot be")
        return
    if method == "hqq" and bits in _HQQ:
        draft.map(key, "quant.name", "hqq")
        draft.put("quant.num_bits", bits)
    elif bits == 8:
        note = "stored as whole bytes; products are computed in model.dtype"
        draft.map(key, "quant.name", "int8", note)
    elif bits == 4 and kind in _OF_FOUR:
        draft.map(key, "quant.name", _OF_FOUR[kind])
        if not double:
            draft.put("quant.double", False)
    else:
        draft.none(
            key, f"{bits} bits of {kind if bits == 4 else method} are not there; base weights stay whole"
        )


def found_in(draft: Draft, *keys: str) -> None:
    """Says that these keys went into the section `quant`, or did nothing where there is none."""
    for key in keys:
        if key in draft.given and draft.has("quant"):
            draft.find(key, Kind.MAPPED, "", "quant")
        elif key in draft.given:
            draft.needless(key, "has no effect: base weights stay whole")
