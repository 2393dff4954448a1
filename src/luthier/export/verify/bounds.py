"""How far an artefact may lie from the trained model before it is another model.

What is stored in 16 bits or more must be the same model up to rounding, and 8 bits nearly so. With fewer bits a model
does change, by how much is the user's own choice: that is told, and only what no rounding does is a fault. So that the
engine's share is not mistaken for rounding, its distance from the decoded file is bounded as that of 8 bits is.
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
    """At least this share of the likeliest tokens, where the choice is clear."""
    spread: float | None = None
    """Of the logits, against theirs."""
    same_text: bool = False
    """Greedy answers must be the same but for ties."""
    lost: float | None = None
    """KL as a part of all that the trained model knows."""


SIXTEEN = Bounds(mean_kl=1e-3, clear_top1=0.999, spread=0.05, same_text=True)
BF16 = Bounds(mean_kl=1e-2, clear_top1=0.999, spread=0.1, same_text=True)
EIGHT = Bounds(mean_kl=1e-2, spread=0.15)
FEW = Bounds(lost=0.5)
AS_DECODED = Bounds(mean_kl=1e-2, spread=0.15)
"""For an engine against the decoded file, if that has fewer bits: it rounds the activations to 8."""

BY_FORM = {"merged": BF16, "adapter": SIXTEEN, "f32": SIXTEEN, "f16": SIXTEEN, "bf16": BF16, "q8_0": EIGHT}


def bounds_of(form: str) -> Bounds:
    """Those of a form: `merged`, `adapter`, or a type of a GGUF."""
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
    if bounds.clear_top1 is not None and found.clear_top1 < bounds.clear_top1:
        told.append(
            f"the likeliest token is the same at {found.clear_top1:.2%} of the clear places, less than "
            f"{bounds.clear_top1:.1%}"
        )
    if bounds.spread is not None and found.spread > bounds.spread:
        told.append(f"logits differ by {found.spread:.2g} of their spread, more than {bounds.spread:g}")
    if bounds.same_text and (other := found.prompts - found.same_text - found.ties):
        told.append(f"{other} of {found.prompts} greedy answers differ where the choice is clear")
    return told
