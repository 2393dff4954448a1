"""Finds the fastest layout in which a model gives the same numbers as transformers' own forward pass.

No list of model names: a few random tokens go through the plain model and through Luthier's path, and if
they differ by more than the dtype explains, the next plainer layout is tried and the reason is told.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.data.batch import Batch, Example, Segment, collate
from luthier.errors import ModelError
from luthier.kernels.attention import Forest
from luthier.kernels.logprob import LogitShape
from luthier.models.heads import possible_shapes
from luthier.models.policy import Layout, Policy
from luthier.models.quantised.embeddings import num_rows


@dataclass(frozen=True)
class Choice:
    """A policy that was checked against the plain model, and why faster layouts were passed over."""

    policy: Policy
    reasons: tuple[str, ...]


def choose_policy(
    model: PreTrainedModel,
    packing: bool | None = None,
    longest: int | None = None,
    make: Callable[..., Policy] = Policy,
) -> Choice:
    """The policy of the fastest faithful layout.

    Args:
        packing: None lets the model decide; False forbids the packed layout; True demands it.
        longest: no document has more tokens than this; None: documents may be of any length.
        make: makes a policy of model, layout and shape of the logits.

    Raises:
        ModelError: packing was demanded but changes the model's numbers, or no layout reproduces them.
    """
    was_training = model.training
    model.eval()
    try:
        batch = probe(model).to(next(model.parameters()).device)
        with torch.no_grad():
            truth_N = make(model, "plain").sketch(batch)
        reasons: dict[Layout, str] = {}
        for layout, shape in _attempts(model, packing):
            policy = make(model, layout, shape)
            fault = _fault(policy, batch, truth_N, longest)
            if fault is None:
                passed_over = (f"{name}: {why}" for name, why in reasons.items() if name != layout)
                return Choice(policy, tuple(passed_over))
            reasons.setdefault(layout, fault)
    finally:
        model.train(was_training)
    raise ModelError(
        "model.packing is true, but this model gives other numbers for documents laid end to end "
        f"({'; '.join(f'{name}: {why}' for name, why in reasons.items())}). Remove model.packing."
    )


def _attempts(model: PreTrainedModel, packing: bool | None) -> Iterator[tuple[Layout, LogitShape]]:
    shapes = possible_shapes(model.config)
    for shape in shapes if packing is not False else ():
        yield "packed", shape
    for shape in shapes if packing is not True else ():
        yield "rows", shape
    if packing is not True:
        yield "plain", LogitShape()


def _fault(policy: Policy, batch: Batch, truth_N: Tensor, longest: int | None) -> str | None:
    """Why this layout is not faithful; None if it is."""
    model = policy.model
    if policy.layout == "plain":
        return None
    try:
        with torch.no_grad():
            logp_N = policy.sketch(batch)
        if policy.layout == "packed":
            fault = _beyond_the_probe(model, batch, longest) or _wrong_view(policy, batch)
            if fault:
                return fault
    except Exception as error:  # whatever a model's code does with arguments it was not made for
        return f"{type(error).__name__}: {str(error).splitlines()[0][:120] if str(error) else ''}"
    # A wrong scale or position is far above what the coarsest dtype in the model rounds to. Whether tokens
    # see what they should is not left to rounding: see _wrong_view.
    eps = max(torch.finfo(p.dtype).eps for p in model.parameters() if p.is_floating_point())
    bound = 2 * max(eps, torch.finfo(torch.float32).eps) ** 0.5  # norms and softmax stay in fp32
    error = float((logp_N - truth_N).norm() / (truth_N - truth_N.mean()).norm())
    return (
        None
        if error <= bound
        else f"log-probabilities differ by {error:.1e} of their spread (limit {bound:.1e})"
    )


def _beyond_the_probe(model: PreTrainedModel, batch: Batch, longest: int | None) -> str | None:
    """Why documents longer than the probe would come out wrong in a pack; None if they would not."""
    config = model.config.get_text_config()
    if getattr(config, "attention_chunk_size", None):
        return "its attention is cut into chunks of positions"
    if (limit := _rotary_limit(config)) is not None and (longest is None or longest > limit):
        return f"its rotary embedding changes with the longest document of a pack, beyond {limit} tokens"
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and (longest is None or longest > window):
        forest = Forest(tuple(batch.starts_S1.tolist()), tuple(batch.parent_S.tolist()))
        with torch.no_grad():
            model.base_model(
                batch.tokens_T[None], position_ids=batch.positions_T[None], use_cache=False, forest=forest
            )
        if not any(forest.windows):
            return f"its window of {window} tokens is not told to the attention"
    return None


def _rotary_limit(config: Any) -> int | None:
    """Up to how many tokens the rotary embedding is the same for every length; None: always."""
    rope = getattr(config, "rope_parameters", None) or {}
    parts = [part for part in (rope, *rope.values()) if isinstance(part, dict)]
    if not any(part.get("rope_type") in ("longrope", "dynamic") for part in parts):
        return None
    limits = [part.get("original_max_position_embeddings") for part in parts]
    limits += [getattr(config, "original_max_position_embeddings", None), config.max_position_embeddings]
    return min(limit for limit in limits if limit)


def _wrong_view(policy: Policy, batch: Batch) -> str | None:
    """Which sequence depends on tokens off its path, or does not on those of its root; None if all is right.

    By gradients with respect to the embedded tokens: they are exactly zero where nothing is seen, in any dtype.
    """
    embedded: list[Tensor] = []

    def catch(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[-1]

    embedding = policy.model.get_input_embeddings()
    assert isinstance(embedding, torch.nn.Module)
    hook = embedding.register_forward_hook(catch)
    try:
        with torch.enable_grad():
            logp_N = policy.sketch(batch)
            starts = batch.starts_S1.tolist()
            for number, path in enumerate(batch.paths()):
                # the first token of an answer is predicted inside its prompt, so it proves nothing
                own_N = (batch.sequence_N == number) & (batch.source_N >= starts[path[-1]])
                (gradient,) = torch.autograd.grad(logp_N[own_N].sum(), embedded[0], retain_graph=True)
                seen_T = gradient.reshape(len(batch.tokens_T), -1).abs().amax(1) > 0
                root, leaf = range(starts[path[0]], starts[path[0] + 1]), path[-1]
                on_path = {i for s in path for i in range(starts[s], starts[s + 1])}
                if off := set(seen_T.nonzero()[:, 0].tolist()) - on_path:
                    return f"document {number} of the probe depends on {len(off)} tokens of others"
                if batch.parent_S[leaf] >= 0 and not bool(seen_T[root.start : root.stop].any()):
                    return f"answer {number} of the probe does not see its prompt"
    finally:
        hook.remove()
    return None


def probe(model: PreTrainedModel) -> Batch:
    """Two documents and a prompt with two answers, of random tokens; short, as the rest of the job waits."""
    embedding = model.get_input_embeddings()
    assert isinstance(embedding, torch.nn.Module)
    vocabulary = num_rows(embedding)
    draw = np.random.default_rng(0)

    def segment(length: int, parent: int = -1) -> Segment:
        ids = draw.integers(0, vocabulary, length).astype(np.int32)
        return Segment(ids, np.ones(length, np.float32), parent)

    forest = (segment(6), segment(4, parent=0), segment(3, parent=0))
    return collate([Example((segment(9),)), Example(forest), Example((segment(5),))])
