"""Decoding from parts only where it gives the plain model's logits, checked on a few random tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.kernels.logprob import LogitShape
from luthier.models.decoding.bound import BoundModel, CannotBind, bind
from luthier.models.decoding.cache import Stored
from luthier.models.decoding.decoder import BlockDecoder
from luthier.models.decoding.widened import logits_in_fp32
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
        texts = _texts(model, bound)
        plain = [model(input_ids=text[None], use_cache=False).logits[0].float() for text in texts]
        mine = {shape: _decoded(bound, shape, texts) for shape in possible_shapes(model.config)}
    except CannotBind as reason:
        return Checked(None, str(reason))
    except Exception as error:  # whatever a model's code does with what it was not made for
        text = str(error).splitlines()[0][:120] if str(error) else ""
        return Checked(None, f"{type(error).__name__}: {text}")
    errors = {shape: _error(found, plain) for shape, found in mine.items()}
    best = min(errors, key=lambda shape: errors[shape])
    bound_on_error = _bound(model)
    if errors[best] <= bound_on_error:
        return Checked(best)
    found = _beside_fp32(model, texts, mine, plain, bound_on_error)
    told = f"its logits differ by {errors[best]:.1e} of their spread (limit {bound_on_error:.1e})"
    return found or Checked(None, told)


def _bound(model: PreTrainedModel) -> float:
    floats = [p.dtype for p in model.parameters() if p.is_floating_point()]
    eps = max(torch.finfo(dtype).eps for dtype in floats)
    return 2 * max(eps, torch.finfo(torch.float32).eps) ** 0.5  # as in tripwire.py


def _beside_fp32(
    model: PreTrainedModel,
    texts: list[Tensor],
    mine: dict[LogitShape, list[Tensor]],
    plain: list[Tensor],
    bound_on_error: float,
) -> Checked | None:
    """The verdict by what fp32 gives; None where a model has no 16-bit weights or cannot compute in fp32.

    In 16 bit the plain forward of a deep model is itself off by more than any bound on differences would allow. So
    the rule of two holds: its parts may be off by no more than twice what the plain forward is, or the bound.
    """
    if all(p.dtype.itemsize != 2 for p in model.parameters()):
        return None
    try:
        truth = logits_in_fp32(model, texts)
    except Exception:  # weights that are stored otherwise and cannot be widened
        return None
    errors = {shape: _error(found, truth) for shape, found in mine.items()}
    best = min(errors, key=lambda shape: errors[shape])
    limit = max(bound_on_error, 2 * _error(_steps_of(plain), truth))
    if errors[best] <= limit:
        return Checked(best)
    return Checked(None, f"its logits are off by {errors[best]:.1e} of what fp32 gives (limit {limit:.1e})")


def _texts(model: PreTrainedModel, bound: BoundModel) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    lengths = [n + STEPS for n in PROMPTS]
    return [torch.randint(bound.head.num_out, (n,), generator=random).to(model.device) for n in lengths]


def _error(found: list[Tensor], right: list[Tensor]) -> float:
    """Greatest difference of any one token, relative to the spread of its right logits.

    `found` is by step, then text: [texts, V] each; `right` by text: [T, V] each.
    """
    worst = 0.0
    for mine_BV, right_BV in zip(found, _steps_of(right), strict=True):
        for mine_V, right_V in zip(mine_BV.float(), right_BV, strict=True):
            spread = (right_V - right_V.mean()).norm()
            error = float((mine_V - right_V).norm() / spread)
            worst = max(worst, error) if error == error else float("inf")
    return worst


def _steps_of(logits: list[Tensor]) -> list[Tensor]:
    """Of each text's logits the last ones, by step."""
    return list(torch.stack([one[-STEPS - 1 :] for one in logits], dim=1))


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
