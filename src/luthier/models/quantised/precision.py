"""Which layers lose most when they are stored in few bits, measured on the user's own rows, and which to leave.

The damage of a layer is the divergence KL(p ‖ q) per prediction between the model as it is and the model in which this
one layer decodes from few bits: measured, one layer after the other, not estimated from gradients or weights. A
divergence is never negative and does not need to know the right answers, so it is much less noisy than a difference of
losses, and a handful of texts is enough to tell layers apart. It costs a forward pass for each layer.

Damages are taken to add up, which they do while they are small, and memory is spent where it prevents most for a byte.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from luthier.data.batch import Batch
from luthier.errors import ConfigError
from luthier.kernels.divergence import Divergence
from luthier.kernels.quant.base import Scheme, store
from luthier.models.policy import Policy
from luthier.models.quantised.load import Quantisation, names_to_store

BUDGET = re.compile(r"(\d+(?:\.\d+)?)\s*(GB|GiB|MB|MiB)?", re.IGNORECASE)
SIZES = {"gb": 10**9, "gib": 2**30, "mb": 10**6, "mib": 2**20}


@dataclass(frozen=True)
class Damage:
    """What storing one layer does."""

    name: str
    divergence: float
    """KL(p ‖ q) per prediction, in nats."""
    num_weights: int
    stored_bytes: int
    plain_bytes: int

    @property
    def cost(self) -> int:
        """Bytes that leaving it as it is takes."""
        return self.plain_bytes - self.stored_bytes


@torch.no_grad()
def measure(
    policy: Policy,
    quantisation: Quantisation,
    batches: Sequence[Batch],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Damage]:
    """The damage of each layer that would be stored, in the model's order, `skip` left out of account.

    Args:
        policy: the model with plain weights; they are as before when this ends.
        batches: rows on the policy's device.
    """
    was_training = policy.training
    policy.eval()
    found = []
    try:
        teachers = [policy.as_teacher(batch) for batch in batches]
        num_predictions = sum(len(batch.target_N) for batch in batches)
        wanted = names_to_store(policy.model, replace(quantisation, skip=()))
        order = [name for name, _ in policy.model.named_modules() if name in wanted]
        for number, name in enumerate(order):
            weight_MK = _weight(policy.model, name)
            with stored_in_place(policy.model, [name], quantisation.scheme) as sizes:
                total = 0.0
                for batch, teacher in zip(batches, teachers, strict=True):
                    total += float(policy.divergence(batch, teacher, Divergence())[1].double().sum())
            size = weight_MK.numel() * weight_MK.element_size()
            found.append(Damage(name, total / num_predictions, weight_MK.numel(), sizes[0], size))
            progress(number + 1, len(order))
    finally:
        policy.train(was_training)
    return found


@torch.no_grad()
def mean_loss(policy: Policy, batches: Iterable[Batch]) -> float:
    """Negative log-likelihood of the learned tokens, in nats per token."""
    was_training = policy.training
    policy.eval()
    total, number = 0.0, 0
    for batch in batches:
        learned_N = batch.weight_N != 0
        total -= float(policy(batch)[learned_N].double().sum())
        number += int(learned_N.sum())
    policy.train(was_training)
    return total / max(1, number)


@contextmanager
def stored_in_place(model: nn.Module, names: Iterable[str], scheme: Scheme) -> Iterator[list[int]]:
    """Within it these layers have the weights that they decode to when stored; their sizes in bytes are given."""
    kept: dict[str, Tensor] = {}
    sizes = []
    try:
        for name in names:
            weight_MK = _weight(model, name)
            kept[name] = weight_MK.clone()
            stored = store(scheme, weight_MK)
            stored.write(weight_MK)
            sizes.append(stored.num_bytes)
        yield sizes
    finally:
        for name, weight_MK in kept.items():
            _weight(model, name).copy_(weight_MK)


def choose(damages: Sequence[Damage], budget: int) -> list[str]:
    """The layers to leave as they are, in the model's order, so that all of them take at most `budget` bytes.

    Those first that prevent most damage for a byte.
    """
    room = budget - sum(damage.stored_bytes for damage in damages)
    chosen = set()
    for damage in sorted(damages, key=lambda one: one.divergence / max(1, one.cost), reverse=True):
        if damage.cost <= room and damage.divergence > 0:
            chosen.add(damage.name)
            room -= damage.cost
    return [damage.name for damage in damages if damage.name in chosen]


def budget_bytes(text: str | None, damages: Sequence[Damage]) -> int:
    """The bytes that a budget allows for all linear layers: `0.7` a weight, or `3.5GB`. Absent: a tenth more than all
    take when they are stored.

    Raises:
        ConfigError: it is no budget, or less than what they take when all are stored.
    """
    least, most = (sum(getattr(one, key) for one in damages) for key in ("stored_bytes", "plain_bytes"))
    weights = sum(damage.num_weights for damage in damages)
    if text is None:
        return least + least // 10
    if (found := BUDGET.fullmatch(text.strip())) is None:
        raise ConfigError(
            f"--budget is {text!r}; give bytes a weight (0.7), or memory with its unit (3.5GB)."
        )
    number, unit = float(found[1]), found[2]
    budget = int(number * (SIZES[unit.lower()] if unit else weights))
    if budget < least:
        raise ConfigError(
            f"--budget is {text}, {budget / 2**20:,.0f} MiB, but the linear layers take {least / 2**20:,.0f} MiB "
            f"when all are stored ({least / weights:.3f} bytes a weight), and {most / 2**20:,.0f} MiB when none is. "
            "Give more, or choose a scheme of fewer bits."
        )
    return budget


def _weight(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(f"{name}.weight").data
