"""Which weights are updated with settings of their own.

Biases and the weights of norms are vectors; weight decay pulls matrices only, unless a rule names it for a vector.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Rule:
    """Settings of some weights; None: those of all others."""

    chosen: frozenset[int]
    """The weights, by `id`."""
    lr: float | None = None
    """Peak learning rate."""
    weight_decay: float | None = None


def param_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float, rules: Sequence[Rule] = ()
) -> list[dict[str, Any]]:
    """torch's parameter groups: matrices, vectors without decay, then the same of each rule.

    A weight goes by the first rule that has it.
    """
    everything = [parameter for _, parameter in named_parameters]
    groups: list[dict[str, Any]] = []
    taken: set[int] = set().union(*(rule.chosen for rule in rules))
    groups += _two([p for p in everything if id(p) not in taken], Rule(frozenset()), weight_decay)
    left = everything
    for rule in rules:
        groups += _two([p for p in left if id(p) in rule.chosen], rule, weight_decay)
        left = [p for p in left if id(p) not in rule.chosen]
    return groups


def _two(parameters: Sequence[nn.Parameter], rule: Rule, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and vectors, where there are any."""
    decays = (weight_decay, 0.0) if rule.weight_decay is None else (rule.weight_decay,) * 2
    kinds = [p for p in parameters if p.dim() > 1], [p for p in parameters if p.dim() <= 1]
    own = {} if rule.lr is None else {"lr": rule.lr}
    return [
        {"params": kind, "weight_decay": decay, **own}
        for kind, decay in zip(kinds, decays, strict=True)
        if kind
    ]
