"""The method's own loss on held-out rows."""

from collections.abc import Iterable

import torch

from luthier.data.batch import Batch
from luthier.methods.base import Method, Scores
from luthier.models.policy import Policy
from luthier.parallel.cluster import Cluster


@torch.no_grad()
def evaluate_loss(
    policy: Policy, method: Method, batches: Iterable[Batch], cluster: Cluster, device: torch.device
) -> dict[str, float]:
    """Mean loss and metrics per unit over all ranks' batches, with dropout off."""
    was_training = policy.training
    policy.eval()
    names = ("loss", *method.metrics)
    totals, units = dict.fromkeys(names, 0.0), 0.0
    for batch in batches:
        units += method.count(batch)
        on_device = batch.to(device)
        loss, metrics = method.loss(Scores(policy(on_device)), on_device)
        for name, value in {"loss": loss, **metrics}.items():
            totals[name] += float(value)
    policy.train(was_training)
    *sums, units = cluster.sum([*totals.values(), units])
    return {name: value / units for name, value in zip(names, sums, strict=True)} if units else {}
