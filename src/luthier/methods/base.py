"""What every method is: a loss on the log-probabilities of a batch's predictions.

A method never sees a model, and a model never sees a method. It is one file with one `@settings` class, whose
fields are its configuration. A loss is a *sum*; the trainer divides it by the count over the whole optimizer
step on all ranks, so that neither micro-batches nor packing nor the number of ranks can change the gradient.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from luthier.data.batch import Batch
from luthier.data.content import Kind


@dataclass(frozen=True)
class Scores:
    """What a model says of a batch."""

    logp_N: Tensor
    """Log-probability of each prediction's target, in fp32."""


class Method:
    """The interface of a method. Fields of a subclass are its settings."""

    reads: ClassVar[Kind] = "conversation"
    """The kind of content it learns from; rows of other kinds are turned into it where that makes sense."""

    metrics: ClassVar[tuple[str, ...]] = ()
    """Names of the metrics that `loss` returns, the same for every batch, so that ranks can add them up."""

    def count(self, batch: Batch) -> float:
        """How many units this batch adds to what the summed loss is divided by. Needs no model."""
        raise NotImplementedError(f"{type(self).__name__} must say what its loss is divided by")

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The summed loss, and sums of metrics that are divided by the same count."""
        raise NotImplementedError(f"{type(self).__name__} must define its loss")

    def coefficients(self, batch: Batch) -> Tensor | None:
        """dLoss/dlogp, [N], where it is known before the model has run; the trainer then takes the cheaper head.

        None: the loss is not linear in the log-probabilities.
        """
        return None
