"""What judged answers look like token by token: metrics under TRL's names, told if a method's `token_metrics` asks.

Shape suffixes: N predictions, Q sequences.
"""

import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.kernels.token_statistics import Statistic
from luthier.methods.base import Scores

NEEDS: tuple[Statistic, ...] = ("is_top", "entropy")
METRICS = ("entropy", "mean_token_accuracy", "count/tokens", "count/chosen_tokens")
PER = {"entropy": "count/tokens", "mean_token_accuracy": "count/chosen_tokens"}
"""Entropy is a mean over the tokens of all answers, accuracy over those of the chosen ones."""


def metrics(scores: Scores, batch: Batch, chosen_Q: Tensor) -> dict[str, Tensor]:
    """Sums of the entropy and of the right guesses, and how many tokens there are; zeros if they were not asked for."""
    if "entropy" not in scores.distribution:
        return dict.fromkeys(METRICS, scores.logp_N.new_zeros(()))
    learned_N = (batch.weight_N > 0) & (batch.columns["row"][batch.sequence_N] >= 0)
    chosen_N = learned_N & chosen_Q[batch.sequence_N]
    values = (
        scores.distribution["entropy"].detach() * learned_N,
        scores.distribution["is_top"].detach() * chosen_N,
        learned_N,
        chosen_N,
    )
    return {name: value.sum().to(torch.float32) for name, value in zip(METRICS, values, strict=True)}
