"""How far an artefact may lie from the trained model before it is another model.

What is stored in 16 bits or more must be the same model up to rounding, and 8 bits nearly so. With fewer bits a model
does change, by how much is the user's own choice: that is told, and only what no rounding does is a fault. So that the
engine's share is not mistaken for rounding, its distance from the decoded file is bounded as that of 8 bits is.

The share of equal likeliest tokens is a bound on the model, while only some hundred places are looked at: with 700 of
them one token that differs is 99.86 % already. So it fails where a model at the bound would differ as often as that by
chance, or more often, in less than one of 100 proofs: with d of n clear places that differ, where

    P(D >= d) < 0.01,   D ~ Binomial(n, 1 - share)

which is 3 of 300 places, 4 of 700, 6 of 1500. What a small sample cannot tell, the KL and the spread of the logits do:
they are means over all places, and a wrong weight moves them far beyond their bounds before any token changes.
"""

import math
from dataclasses import dataclass

from luthier.export.verify.compare import Distance


@dataclass(frozen=True)
class Bounds:
    """The most that is allowed; None: not looked at."""

    mean_kl: float | None = None
    """KL(trained ‖ artefact) in nats."""
    clear_top1: float | None = None
    """At least this share of the likeliest tokens, where the choice is clear, as far as so many places can tell."""
    spread: float | None = None
    """Of the logits, against theirs."""
    same_text: bool = False
    """Greedy answers must be the same but for ties."""
    lost: float | None = None
    """KL as a part of all that the trained model knows."""


CHANCE = 0.01
"""A share is below its bound where chance alone would be as far below in fewer proofs than this."""

SIXTEEN = Bounds(mean_kl=1e-3, clear_top1=0.999, spread=0.05, same_text=True)
BF16 = Bounds(mean_kl=1e-2, clear_top1=0.999, spread=0.1, same_text=True)
EIGHT = Bounds(mean_kl=1e-2, spread=0.15)
FEW = Bounds(lost=0.5)
AS_DECODED = Bounds(mean_kl=1e-2, spread=0.15)
"""For an engine against the decoded file, if that has fewer bits: it rounds the activations to 8."""

BY_FORM = {
    **dict.fromkeys(("adapter", "gguf-lora", "onnx", "f32", "f16"), SIXTEEN),
    **dict.fromkeys(("merged", "bf16"), BF16),
    **dict.fromkeys(("q8_0", "int8", "gptq-int8"), EIGHT),
}


def by_chance(differ: int, places: int, share: float) -> float:
    """How likely it is that at least so many of the places differ, if each does with probability `share`."""

    def exactly(number: int) -> float:
        ways = math.lgamma(places + 1) - math.lgamma(number + 1) - math.lgamma(places - number + 1)
        return math.exp(ways + number * math.log(share) + (places - number) * math.log1p(-share))

    return 1 - sum(exactly(number) for number in range(differ))


def bounds_of(form: str) -> Bounds:
    """Those of a form: `merged`, `adapter`, or a type of a GGUF or of compressed-tensors."""
    return BY_FORM.get(form, FEW)


def faults(found: Distance, bounds: Bounds) -> list[str]:
    """What is more than allowed, in words; empty: it is the same model."""
    told = []
    if found.same_ids < found.prompts:
        told.append(f"{found.prompts - found.same_ids} of {found.prompts} prompts become other tokens")
    if found.same_prompt is not None and found.same_prompt < found.conversations:
        missing = found.conversations - found.same_prompt
        told.append(
            f"{missing} of {found.conversations} conversations become another text by its chat template"
        )
    if math.isnan(found.mean_kl):
        return [*told, "its logits are no numbers"]
    if bounds.mean_kl is not None and found.mean_kl > bounds.mean_kl:
        told.append(f"the mean KL is {found.mean_kl:.2g} nats, more than {bounds.mean_kl:g}")
    if bounds.lost is not None and found.mean_kl > bounds.lost * found.knows:
        told.append(
            f"the mean KL is {found.mean_kl:.2g} nats, more than {bounds.lost:g} of that of a model that knows "
            f"nothing ({found.knows:.2g})"
        )
    differ = found.clear - found.clear_agreed
    if bounds.clear_top1 is not None and by_chance(differ, found.clear, 1 - bounds.clear_top1) < CHANCE:
        told.append(
            f"the likeliest token is another at {differ} of {found.clear} clear places, {found.clear_top1:.2%} the "
            f"same and not {bounds.clear_top1:.1%}"
        )
    if bounds.spread is not None and found.spread > bounds.spread:
        told.append(f"logits differ by {found.spread:.2g} of their spread, more than {bounds.spread:g}")
    if bounds.same_text and (other := found.prompts - found.same_text - found.ties):
        told.append(f"{other} of {found.prompts} greedy answers differ where the choice is clear")
    return told
