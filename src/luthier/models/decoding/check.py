"""Decoding from parts only where it gives the plain model's logits, checked on a few random tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.kernels.logprob import LogitShape
from luthier.models.decoding.bound import BoundModel, CannotBind, bind
from luthier.models.decoding.cache import Stored
from luthier.models.decoding.decoder import BlockDecoder
from luthier.models.heads import possible_shapes

PROMPTS = (5, 9)
"""Tokens of the two prompts of the probe."""
STEPS = 3
"""Tokens that are read one at a time behind each."""


@dataclass(frozen=True)
class Checked:
    """Whether a model can be decoded from its parts."""

    shape: LogitShape | None
    """What it does to its logits; None: it cannot be decoded so."""
    reason: str = ""
    """Why not, in a few words."""


@torch.no_grad()
def check(model: PreTrainedModel) -> Checked:
    """Compares the logits of a probe with those of the model's own forward. The model must be in evaluation mode,
    with transformers' attention."""
    try:
        bound = bind(model)
        shapes = possible_shapes(model.config)
        errors = [_error(model, bound, shape) for shape in shapes]
    except CannotBind as reason:
        return Checked(None, str(reason))
    except Exception as error:  # whatever a model's code does with what it was not made for
        text = str(error).splitlines()[0][:120] if str(error) else ""
        return Checked(None, f"{type(error).__name__}: {text}")
    floats = [p.dtype for p in model.parameters() if p.is_floating_point()]
    eps = max(torch.finfo(dtype).eps for dtype in floats)
    bound_on_error = 2 * max(eps, torch.finfo(torch.float32).eps) ** 0.5  # as in tripwire.py
    best = min(range(len(shapes)), key=lambda place: errors[place])
    if not errors[best] <= bound_on_error:
        return Checked(
            None, f"its logits differ by {errors[best]:.1e} of their spread (limit {bound_on_error:.1e})"
        )
    return Checked(shapes[best])


def _error(model: PreTrainedModel, bound: BoundModel, shape: LogitShape) -> float:
    """Greatest difference from the plain model's logits of any one token, relative to their spread."""
    random = torch.Generator().manual_seed(0)
    lengths = [n + STEPS for n in PROMPTS]
    texts = [torch.randint(bound.head.num_out, (n,), generator=random).to(model.device) for n in lengths]
    theirs = [model(input_ids=text[None], use_cache=False).logits[0, -STEPS - 1 :].float() for text in texts]
    worst = 0.0
    for number, mine_BV in enumerate(_decoded(bound, shape, texts)):
        for mine_V, theirs_SV in zip(mine_BV.float(), theirs, strict=True):
            spread = (theirs_SV[number] - theirs_SV[number].mean()).norm()
            error = float((mine_V - theirs_SV[number]).norm() / spread)
            worst = max(worst, error) if error == error else float("inf")
    return worst


def _decoded(bound: BoundModel, shape: LogitShape, texts: list[Tensor]) -> list[Tensor]:
    """Logits after the prompts and after each further token."""
    decoder = BlockDecoder(bound, shape, num_blocks=2)
    rows = [Stored(), Stored()]
    for row, text in zip(rows, texts, strict=True):
        decoder.cache.grow(row, len(text))
    found = [decoder.read(rows, [text[:-STEPS].tolist() for text in texts])]
    for back in range(STEPS, 0, -1):
        token_B = torch.stack([text[-back] for text in texts])
        found.append(decoder.step(token_B, rows).clone())
    return found
