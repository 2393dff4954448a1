"""Fused layers only where they give the plain layers' numbers, forward and backward.

The same few random tokens as in tripwire.py go through the model before and after; log-probabilities and every
gradient must agree up to what the dtype rounds to, and attention must ask for the same windows. In 16 bit that is
coarse, so single layers are then held to their own numbers in fp32 (exact.py).
"""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from luthier.data.batch import Batch
from luthier.kernels.attention import Forest
from luthier.models.fused.exact import layer_fault
from luthier.models.fused.fuse import Fusion, fuse
from luthier.models.peft_adapters.held import peft_of
from luthier.models.policy import Policy
from luthier.models.tripwire import probe

LOOKED_AT = 1 << 16
"""Elements of a gradient that are compared, at least, of one that has as many."""


def fuse_checked(policy: Policy) -> tuple[Fusion | None, str]:
    """Fuses the policy's model if that is faithful; the fusion, and a line that says what runs how and why."""
    if policy.layout != "packed":
        return None, "no layer is fused, as documents do not go through this model end to end"
    if (adapter := peft_of(policy.model)) is not None and adapter.prompt and adapter.prompt.gives_states:
        return None, "no layer is fused: learned keys and values stand before those of the tokens"
    was_training = policy.training
    policy.eval()
    try:
        with _noticeable_adapters(policy):
            before = _Numbers(policy)
            fusion = fuse(policy.model)
            fault = _fault(policy, before, fusion) if fusion.layers else None
    finally:
        policy.train(was_training)
    if fault is not None:
        fusion.release()
        return None, f"no layer is fused: {fault}"
    return fusion, summary(fusion)


def summary(fusion: Fusion) -> str:
    """What runs fused, what plain, and why."""
    num_plain = sum(fusion.reasons.values())
    why = "; ".join(f"{reason} ({count})" for reason, count in fusion.reasons.items())
    if not fusion.layers:
        return f"no layer is fused: {why or 'no file in models/families describes this architecture'}"
    return f"{len(fusion.layers)} of {len(fusion.layers) + num_plain} layers fused" + (
        f"; plain: {why}" if why else ""
    )


def _fault(policy: Policy, before: "_Numbers", fusion: Fusion) -> str | None:
    """What is wrong with the fused layers' numbers, or why there are none."""
    try:
        return before.fault(_Numbers(policy)) or layer_fault(policy, fusion, probed(policy))
    except Exception as error:  # whatever a layer is that was described wrongly: it then runs plain
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


@contextmanager
def _noticeable_adapters(policy: Policy) -> Iterator[None]:
    """While it holds, new adapters, which start as no change at all, change something."""
    zero_at_first = re.compile(r"\.lora_B(\.|$)|\.lora_embedding_A$")
    new = [p for name, p in policy.named_parameters() if zero_at_first.search(name) and not p.any()]
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in new:
            parameter.copy_(torch.randn(parameter.shape, generator=generator).mul_(0.02))
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter in new:
                parameter.zero_()


def probed(policy: Policy) -> Batch:
    """The probe, where the model computes."""
    return probe(policy.model).to(next(policy.parameters()).device)


class _Numbers:
    """What the model makes of the probe."""

    def __init__(self, policy: Policy):
        batch = probed(policy)
        embedded: list[Tensor] = []

        def catch(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            embedded.append(output.detach().requires_grad_())
            return embedded[-1]

        embedding = policy.model.get_input_embeddings()
        assert isinstance(embedding, nn.Module)
        hook = embedding.register_forward_hook(catch)
        try:
            with torch.enable_grad():
                logp_N = policy.sketch(batch)
                weights_N = torch.linspace(0.5, 1.5, len(logp_N), device=logp_N.device)
                trained = [p for p in policy.parameters() if p.requires_grad]
                self.gradients = _gradients((logp_N * weights_N).sum(), [embedded[0], *trained])
        finally:
            hook.remove()
        self.logp_N = logp_N.detach()
        self.windows = self._windows(policy, batch)
        self.eps = max(torch.finfo(p.dtype).eps for p in policy.parameters() if p.is_floating_point())

    def fault(self, other: "_Numbers") -> str | None:
        """How the other numbers differ from these by more than rounding; None if they do not."""
        if self.windows != other.windows:
            return f"attention windows {other.windows} instead of {self.windows}"
        bound = 2 * max(self.eps, torch.finfo(torch.float32).eps) ** 0.5
        spread = (self.logp_N - self.logp_N.mean()).norm()
        if not (error := (self.logp_N - other.logp_N).norm() / spread) <= bound:
            return f"log-probabilities differ by {error:.1e} of their spread (limit {bound:.1e})"
        if self.gradients.keys() != other.gradients.keys():
            return f"{len(other.gradients)} gradients instead of {len(self.gradients)}"
        for number, mine in self.gradients.items():
            if not (error := (mine - other.gradients[number]).norm()) <= bound * mine.norm():
                return f"a gradient differs by {error / mine.norm():.1e} (limit {bound:.1e})"
        return None

    @staticmethod
    def _windows(policy: Policy, batch: Any) -> set[int | None]:
        forest = Forest(tuple(batch.starts_S1.tolist()), tuple(batch.parent_S.tolist()))
        with torch.no_grad():
            tokens, positions = batch.tokens_T[None], batch.positions_T[None]
            policy.model.base_model(tokens, position_ids=positions, use_cache=False, forest=forest)
        return forest.windows


def _gradients(loss: Tensor, leaves: list[Tensor]) -> dict[int, Tensor]:
    """What is compared of the gradient of each leaf that has one, by its place: all of it, or `LOOKED_AT` elements
    from all over it. A gradient is gone as soon as it was looked at: all of them would be as large as the model.
    """
    found: dict[int, Tensor] = {}

    def look(number: int, leaf: Tensor) -> None:
        assert leaf.grad is not None
        flat = leaf.grad.reshape(-1)
        every = len(flat) // LOOKED_AT | 1  # odd, so that it does not stay in the same columns
        found[number] = flat[:: max(1, every)].clone()
        leaf.grad = None

    with ExitStack() as hooks:
        for number, leaf in enumerate(leaves):
            hooks.callback(setattr, leaf, "grad", leaf.grad)  # what it had is its own
            leaf.grad = None
            handle = leaf.register_post_accumulate_grad_hook(lambda leaf, number=number: look(number, leaf))
            hooks.callback(handle.remove)
        torch.autograd.backward([loss], inputs=leaves)
    return found
