"""Whether a program that is too far from the trained model is so by its own rounding alone.

llama.cpp rounds to 8 bits whatever it multiplies with weights in few bits (`rounded_inputs.py`), so its answers lie
off those of the very numbers in the file. How far cannot be told by rounding likewise elsewhere and comparing the
answers: where rounding decides, a difference of one part in a million at the beginning moves the answers as far as
the rounding itself does. So it is shown step by step:

1. the file, decoded and computed in fp32, is within the bounds of its form;
2. llama.cpp with nothing but its products replaced by those in fp32 gives what the decoded file gives, as closely as a
   file in 16 bits must;
3. each product that it had made itself is the product of the rounded input.

Together: what is written is right, llama.cpp reads it right and does with it what it should, and only its rounding is
left as the cause.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from luthier.errors import ModelError
from luthier.export.verify.bounds import SIXTEEN, bounds_of, faults
from luthier.export.verify.compare import Distance, Said, apart
from luthier.export.verify.engine import Engine

ONLY_ROUNDING = 0.999
"""A product is that of the rounded input if this part of what it lies off the exact one, by squares, is the rounding of
the input. What may be left is the order of sums in fp32."""
WITHOUT = replace(SIXTEEN, same_text=False)
"""For llama.cpp with products in fp32 against the decoded file."""


class PlainEngine(Engine, Protocol):
    """A program whose own rounding can be taken out (`engines/llama_plain.py`)."""

    @property
    def products(self) -> dict[str, list[float]]:
        """For each weight, which parts of what its products lie off are the rounding of their inputs."""
        ...

    def unmet(self) -> list[str]:
        """Weights that were never multiplied with."""
        ...

    def explained(self) -> tuple[float, str]:
        """The least of `products`, and its weight."""
        ...


@dataclass(frozen=True)
class OwnRounding:
    """What a program's own rounding adds to what the file lost."""

    beyond: list[str]
    """The bounds that are missed by it, in words."""
    decoded: Distance
    """Of the decoded file from the trained model."""
    without: Distance
    """Of the program without its rounding from the decoded file."""
    products: int
    """Weights whose products were looked at."""
    explained: float
    """At least this part of what each of these products lies off the exact one is the rounding of its input."""
    adds: float
    """Nats of mean KL."""


def own_rounding(
    said: Sequence[Said],
    found: Distance,
    form: str,
    beyond: list[str],
    decoded: Sequence[Tensor],
    plain: Callable[[], PlainEngine],
) -> OwnRounding | str:
    """Whether the program's rounding is why it is `found` so far from what the trained model said; if it is not, why.

    Args:
        beyond: which bounds are missed, in words.
        decoded: what the decoded file gives at the same places: for each prompt [T, V].
        plain: gives the program without its rounding.
    """
    file = apart(said, decoded)
    if far := faults(file, bounds_of(form)):
        return f"the decoded file itself is too far off: {'; '.join(far)}"
    by_file = [replace(one, logits_TV=logits) for one, logits in zip(said, decoded, strict=True)]
    try:
        with plain() as engine:
            without = apart(by_file, [engine.logits(one.fed, len(one.logits_TV)) for one in said])
            unmet, (share, least) = engine.unmet(), engine.explained()
            number = len(engine.products)
    except ModelError as error:
        return str(error)
    if far := faults(without, WITHOUT):
        return f"without its rounding it does not compute what the file says either: {'; '.join(far)}"
    if unmet:
        return f"{len(unmet)} matrices of the file were not seen to be used, {unmet[0]} for one"
    if not share >= ONLY_ROUNDING:
        return f"its products with {least} are not those of rounded inputs ({share:.2%} explained)"
    return OwnRounding(beyond, file, without, number, share, found.mean_kl - file.mean_kl)
