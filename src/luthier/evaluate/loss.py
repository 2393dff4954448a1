"""The method's own loss on held-out rows, and how well their tokens and bytes are predicted.

perplexity = exp(nll / tokens), bits per byte = nll / (ln 2 · bytes), with nll the summed negative log-likelihood in
nats of all learned tokens, end-of-text tokens too, and bytes those of UTF-8 that the predicted tokens stand for. Bits
per byte compare models with different tokenizers.
"""

import math
from collections.abc import Iterable

import torch

from luthier.data.batch import Batch
from luthier.evaluate.extremes import greatest, signed_extremes
from luthier.evaluate.scoring import Scorer
from luthier.methods.base import Method, Scores
from luthier.models.cross_teacher import AnyTeacher
from luthier.models.policy import Policy
from luthier.models.reference import Reference
from luthier.parallel.cluster import Cluster


@torch.no_grad()
def evaluate_loss(
    policy: Policy,
    method: Method,
    batches: Iterable[Batch],
    cluster: Cluster,
    device: torch.device,
    reference: Reference | None = None,
    teacher: AnyTeacher | None = None,
) -> dict[str, float]:
    """Mean loss and metrics per unit over all ranks' batches, with dropout off. A method that looks ahead sees them
    all as one step.

    For methods that learn texts and answers also `perplexity`, and `bits_per_byte` if all rows are plain text.
    """
    was_training = policy.training
    policy.eval()
    scorer = Scorer(policy, method, reference, cluster, teacher)
    names = ("loss", *method.metrics)
    totals, units = dict.fromkeys(names, 0.0), 0.0
    likelihood, extremes = [0.0, 0.0, 0.0], [[-math.inf] * len(method.extremes)]
    steps = [list(batches)] if method.looks_ahead else ([batch] for batch in batches)
    for step in steps:
        units += sum(map(method.count, step))
        for batch in scorer.look_ahead(step, device):
            on_device = batch.to(device)
            scores = scorer(on_device)
            likelihood = [a + b for a, b in zip(likelihood, _likelihood(scores, on_device), strict=True)]
            loss, metrics = method.loss(scores, on_device)
            for name, value in zip(names, (loss, *(metrics[n] for n in method.metrics)), strict=True):
                totals[name] += float(value)
            if method.extremes:
                extremes.append(signed_extremes(method, metrics).tolist())
    policy.train(was_training)
    *sums, nll, tokens, size, units = cluster.sum([*totals.values(), *likelihood, units])
    everywhere = [values for rank in cluster.gather(extremes) for values in rank]
    if not units:
        return {}
    values = method.report({name: value / units for name, value in zip(names, sums, strict=True)})
    values |= greatest(method, everywhere)
    return values | (_of_texts(nll, tokens, size) if method.reads == "conversation" else {})


def _likelihood(scores: Scores, batch: Batch) -> list[float]:
    """Negative log-likelihood of the learned tokens, their number, and their bytes: NaN where these are not known."""
    if len(scores.logp_N) != len(batch.weight_N):
        return [0.0, 0.0, math.nan]  # a head of another kind predicts no tokens
    learned_N = batch.weight_N != 0
    bytes_Q = batch.columns.get("bytes")
    size = math.nan if bytes_Q is None else float(bytes_Q.double().sum())
    return [-float(scores.logp_N[learned_N].double().sum()), float(learned_N.sum()), size]


def _of_texts(nll: float, tokens: float, size: float) -> dict[str, float]:
    if not tokens:
        return {}
    found = {"perplexity": math.exp(min(nll / tokens, 700.0))}
    if size > 0:
        found["bits_per_byte"] = nll / math.log(2) / size
    return found
