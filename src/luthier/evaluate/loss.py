"""The method's own loss on held-out rows."""

from collections.abc import Iterable

import torch

from luthier.data.batch import Batch
from luthier.evaluate.scoring import Scorer
from luthier.methods.base import Method
from luthier.models.policy import Policy
from luthier.models.reference import Reference
from luthier.models.teacher import Teacher
from luthier.parallel.cluster import Cluster


@torch.no_grad()
def evaluate_loss(
    policy: Policy,
    method: Method,
    batches: Iterable[Batch],
    cluster: Cluster,
    device: torch.device,
    reference: Reference | None = None,
    teacher: Teacher | None = None,
) -> dict[str, float]:
    """Mean loss and metrics per unit over all ranks' batches, with dropout off. A method that looks ahead sees them
    all as one step.
    """
    was_training = policy.training
    policy.eval()
    scorer = Scorer(policy, method, reference, cluster, teacher)
    names = ("loss", *method.metrics)
    totals, units = dict.fromkeys(names, 0.0), 0.0
    steps = [list(batches)] if method.looks_ahead else ([batch] for batch in batches)
    for step in steps:
        units += sum(map(method.count, step))
        for batch in scorer.look_ahead(step, device):
            on_device = batch.to(device)
            loss, metrics = method.loss(scorer(on_device), on_device)
            for name, value in {"loss": loss, **metrics}.items():
                totals[name] += float(value)
    policy.train(was_training)
    *sums, units = cluster.sum([*totals.values(), units])
    if not units:
        return {}
    return method.report({name: value / units for name, value in zip(names, sums, strict=True)})
