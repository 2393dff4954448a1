"""What servers do not serve of an adapter beside its base model."""

from collections.abc import Iterator, Mapping
from typing import Any

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Limits of the rank that vLLM can be given."""


def refused_parts(settings: Mapping[str, Any]) -> Iterator[str]:
    """What of PEFT's settings servers refuse or, worse, pass over: they read one rank, one alpha and the factors."""
    if (kind := settings.get("peft_type", "LORA")) != "LORA":
        yield f"it is of the type {kind}, and only LoRA is served"
        return
    if settings.get("use_dora"):
        yield "it has DoRA's lengths (lora.dora)"
    if settings.get("modules_to_save"):
        yield f"it has whole modules of its own ({', '.join(settings['modules_to_save'])})"
    if settings.get("trainable_token_indices"):
        yield "it has rows for single tokens (model.new_tokens)"
    if settings.get("target_parameters"):
        yield "it adapts stacked experts"
    if (settings.get("bias") or "none") != "none":
        yield "it has biases of its own"
    if settings.get("alpha_pattern") or settings.get("rank_pattern"):
        yield "its modules have several ranks or alphas, of which one would be read"
    if (rank := int(settings.get("r", 0))) > RANKS[-1]:
        yield f"its rank is {rank}, and the highest that is served is {RANKS[-1]}"


def limit_for(rank: int) -> int:
    """The least limit that this rank keeps to."""
    return next(limit for limit in RANKS if limit >= rank)
