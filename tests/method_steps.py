"""One step of a method on a tiny policy that all tests of a process share: making one costs more than the step."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

import luthier.methods
from head_models import LABELS, tiny_policy
from luthier.config.plugins import load_plugin
from luthier.data.batch import Batch, Example
from luthier.kernels.divergence import Measure
from luthier.methods.base import Method
from luthier.models.cross_teacher import CrossTeacher
from luthier.models.policy import Policy
from luthier.models.teacher import Teacher
from luthier.models.value_head import Head
from luthier.optim.gradients import Gradients
from luthier.parallel.cluster import Cluster
from luthier.training.learner import Learner
from training_parts import rows_for, teacher_for

Variant = tuple[str, dict[str, Any]]
Step = tuple[dict[str, float], list[Tensor]]
NUM_ROWS = 6


def policy_of(rank: int, variant: Variant = ("sft", {})) -> tuple[Policy, list[Tensor]]:
    """A policy for each rank, all alike, and weights away from those that it begins with."""
    return _policy_of(rank, method_of(variant).head(LABELS))


@cache
def _policy_of(rank: int, head: Head | None) -> tuple[Policy, list[Tensor]]:
    policy = tiny_policy(head)
    generator = torch.Generator().manual_seed(5)
    trained = [p for p in policy.parameters() if p.requires_grad]
    return policy, [p.detach() + 0.05 * torch.randn(p.shape, generator=generator) for p in trained]


def teacher_of(rank: int, variant: Variant = ("distill", {})) -> Teacher | CrossTeacher:
    """A teacher for each rank, all alike."""
    return _teacher_of(rank, method_of(variant).teacher_divergence)


@cache
def _teacher_of(rank: int, measure: Measure | None) -> Teacher | CrossTeacher:
    return teacher_for(measure)


def method_of(variant: Variant) -> Method:
    return load_plugin(luthier.methods, variant[0])(**variant[1])


def rows_of(variant: Variant) -> list[Example]:
    method = method_of(variant)
    arranged = method.arrange(rows_for(method.reads, NUM_ROWS))
    return [arranged.example(index) for index in range(NUM_ROWS)]


def step_of(
    variant: Variant, micro_batches: Sequence[Batch], cluster: Cluster | None = None, *, moved: bool = True
) -> Step:
    """What a step reports, and the gradient that it takes. `moved`: the model has moved from its reference."""
    cluster, method = cluster or Cluster(), method_of(variant)
    policy, elsewhere = policy_of(cluster.rank, variant)
    trained = [p for p in policy.parameters() if p.requires_grad]
    gradients = Gradients(trained)
    learner = Learner(policy, method, gradients, torch.device("cpu"), cluster)
    learner.scorer.teacher = teacher_of(cluster.rank, variant) if method.teacher_divergence else None
    start = [parameter.data for parameter in trained]
    try:
        for parameter, weight in zip(trained, elsewhere if moved else start, strict=True):
            parameter.data = weight
        units = cluster.sum([sum(map(method.count, micro_batches))])[0]
        totals = cluster.sum(learner(micro_batches, units).tolist())
        gradients.collect(cluster.sum)
        cluster.sum_in_place(gradients.tensors())
        means = {n: t / units for n, t in zip(("loss", *method.metrics), totals, strict=True)}
        return method.report(means), [tensor.clone() for tensor in gradients.tensors()]
    finally:
        for parameter, weight in zip(trained, start, strict=True):
            parameter.data, parameter.grad = weight, None
