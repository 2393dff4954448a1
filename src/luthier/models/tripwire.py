"""Finds the fastest layout in which a model gives the same numbers as transformers' own forward pass.

No list of model names: a few random tokens go through the plain model and through Luthier's path, and if
they differ by more than the dtype explains, the next plainer layout is tried and the reason is told.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.data.batch import Batch, Example, Segment, collate
from luthier.errors import ModelError
from luthier.kernels.logprob import LogitShape
from luthier.models import compat
from luthier.models.heads import possible_shapes
from luthier.models.policy import Layout, Policy


@dataclass(frozen=True)
class Choice:
    """A policy that was checked against the plain model, and why faster layouts were passed over."""

    policy: Policy
    reasons: tuple[str, ...]


def choose_policy(model: PreTrainedModel, packing: bool | None = None) -> Choice:
    """The policy of the fastest faithful layout.

    Args:
        packing: None lets the model decide; False forbids the packed layout; True demands it.

    Raises:
        ModelError: packing was demanded but changes the model's numbers, or no layout reproduces them.
    """
    was_training = model.training
    model.eval()
    try:
        batch = _probe(model).to(next(model.parameters()).device)
        with torch.no_grad():
            truth_N = Policy(model, "plain")(batch)
            reasons: list[str] = []
            for layout, shape in _attempts(model, packing):
                fault = _difference(model, layout, shape, batch, truth_N)
                if fault is None:
                    return Choice(Policy(model, layout, shape), tuple(dict.fromkeys(reasons)))
                reasons.append(f"{layout}: {fault}")
                compat.use_plain_attention(model)
    finally:
        model.train(was_training)
    raise ModelError(
        "model.packing is true, but this model gives other numbers for documents laid end to end "
        f"({'; '.join(dict.fromkeys(reasons))}). Remove model.packing."
    )


def _attempts(model: PreTrainedModel, packing: bool | None) -> Iterator[tuple[Layout, LogitShape]]:
    shapes = possible_shapes(model.config)
    for shape in shapes if packing is not False else ():
        yield "packed", shape
    for shape in shapes if packing is not True else ():
        yield "rows", shape
    if packing is not True:
        yield "plain", LogitShape()


def _difference(
    model: PreTrainedModel, layout: Layout, shape: LogitShape, batch: Batch, truth_N: Tensor
) -> str | None:
    """Why this layout is not faithful; None if it is."""
    if layout == "plain":
        return None
    if layout == "packed" and getattr(model.config.get_text_config(), "attention_chunk_size", None):
        return "its attention is cut into chunks of positions"  # farther apart than the probe is long
    try:
        logp_N = Policy(model, layout, shape)(batch)
    except Exception as fault:  # whatever a model's code does with arguments it was not made for
        return f"{type(fault).__name__}: {str(fault).splitlines()[0][:120] if str(fault) else ''}"
    # Half the digits of the dtype: rounding stays far below, a leak or a wrong scale far above.
    eps = max(torch.finfo(model.dtype).eps, torch.finfo(torch.float32).eps)  # norms and softmax stay in fp32
    bound = 2 * eps**0.5
    error = float((logp_N - truth_N).norm() / (truth_N - truth_N.mean()).norm())
    return (
        None
        if error <= bound
        else f"log-probabilities differ by {error:.1e} of their spread (limit {bound:.1e})"
    )


def _probe(model: PreTrainedModel) -> Batch:
    """Two documents and a prompt with two answers, of random tokens; short, as the rest of the job waits."""
    vocabulary: int = model.get_input_embeddings().weight.shape[0]  # pyright: ignore[reportAssignmentType, reportIndexIssue]
    draw = np.random.default_rng(0)

    def segment(length: int, parent: int = -1) -> Segment:
        ids = draw.integers(0, vocabulary, length).astype(np.int32)
        return Segment(ids, np.ones(length, np.float32), parent)

    forest = (segment(6), segment(4, parent=0), segment(3, parent=0))
    return collate([Example((segment(9),)), Example(forest), Example((segment(5),))])
