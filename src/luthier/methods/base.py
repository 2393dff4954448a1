"""What every method is: a loss on the log-probabilities of a batch's predictions, or on what another head says.

A method never sees a model, and a model never sees a method. It is one file with one `@settings` class, whose
fields are its configuration. A loss is a *sum*; the trainer divides it by the count over the whole optimizer
step on all ranks, so that neither micro-batches nor packing nor the number of ranks can change the gradient.

Most losses are sums over sequences or pairs. A few compare each with all others of the step (a reference point,
a ranking). Such a method looks ahead: before the first backward pass it is shown every micro-batch of the step
without gradients, and what it makes of them, on all ranks together, is handed to each of its losses.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from torch import Tensor

from luthier.data.batch import Batch
from luthier.data.content import Kind
from luthier.kernels.divergence import Measure
from luthier.kernels.token_statistics import Statistic
from luthier.models.value_head import Head

if TYPE_CHECKING:
    from luthier.data.loader import Dataset

Reads = Kind | Literal["pair", "label", "ranking", "triple", "class", "number", "similar", "relevance"]


@dataclass(frozen=True)
class Scores:
    """What a model says of a batch."""

    logp_N: Tensor
    """Log-probability of each prediction's target, in fp32."""
    reference_N: Tensor | None = None
    """The same by the frozen reference, without a gradient; only for a method that needs it."""
    step: Tensor | None = None
    """What `statistics` made of the whole step; only for a method that looks ahead."""
    values: Tensor | None = None
    """What a head of another kind says, in fp32; `logp_N` is then empty. A score: [Q, labels], read at the last
    token of each sequence. Steps: [N, labels], read at the token that each prediction is made from. An embedding:
    a vector for each sequence, [Q, D]."""
    distribution: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """What `needs_distribution` names, [N] each in fp32, by name."""
    divergence_N: Tensor | None = None
    """How far each prediction's distribution is from the teacher's, in fp32; only for a method that has one."""


@dataclass(frozen=True)
class Sampling:
    """Answers that the model that is trained writes itself before a step, in the place of those of its rows.

    A row's prompt is all that stands before the last thing it teaches. Whether a step is such a one, and every token
    that is drawn, follow from seed, step and row alone: there is no random state, and ranks agree.
    """

    fraction: float = 1.0
    """Share of the steps; in the others the rows are learned as they are."""
    num_samples: int = 1
    """Answers to each prompt, each a sequence of the row."""
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    """Longest answer; shorter where a micro-batch has no room for the prompt and all its answers."""


class Method:
    """The interface of a method. Fields of a subclass are its settings."""

    reads: ClassVar[Reads] = "conversation"
    """The kind of content it learns from; rows of other kinds are turned into it where that makes sense.

    "pair", "label", "ranking" and "triple" are answers that are judged: each row a prompt with one sequence an
    answer. Of a ranking the best comes first, and a column `rank` or `score` says how good each is; a triple is an
    answer to imitate, a better and a worse one. "class" and "number" are texts with a label, in the column
    `label`; "similar" a query and texts, each a sequence, and "relevance" texts that each continue their query: column
    `relevance`.
    """

    metrics: ClassVar[tuple[str, ...]] = ()
    """Names of the metrics that `loss` returns, the same for every batch, so that ranks can add them up."""

    extremes: ClassVar[dict[str, Literal["min", "max"]]] = {}
    """Metrics that `loss` returns besides: the least or the greatest number of the batch, and so of the step. inf or
    -inf where a batch has none."""

    per: ClassVar[dict[str, str]] = {}
    """For a metric that is no mean over the count: which other metric counts its units."""

    def head(self, labels: Sequence[str] = ()) -> Head | None:
        """The head it trains in place of the one that writes; None: that one. `labels` are those found in the data."""
        return None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, of a method that reads "class"; none: those found in the data."""
        return ()

    @property
    def needs_reference(self) -> bool:
        """Whether the loss compares with the model as it was before training."""
        return False

    @property
    def needs_distribution(self) -> tuple[Statistic, ...]:
        """What the loss must know of each prediction's distribution beside the target's log-probability.

        The names and formulas are in `kernels/token_statistics.py`. Each costs sweeps over the logits.
        """
        return ()

    @property
    def teacher_divergence(self) -> Measure | None:
        """How the loss measures the distance from a teacher (`teacher` in the config); None: it has no teacher.

        With a `SortedDistance` the teacher may have another vocabulary: it reads the same text in its own tokens.
        """
        return None

    @property
    def sampling(self) -> Sampling | None:
        """Which answers the model writes itself before a step; None: it learns those of the rows.

        The batches that the method is given then hold prompt and own answers, each token of these with weight 1, and
        the columns of the row. Held-out rows keep the answers of the data.
        """
        return None

    @property
    def looks_ahead(self) -> bool:
        """Whether the loss depends on the whole step, so that `preview` must see it first."""
        return False

    def count(self, batch: Batch) -> float:
        """How many units this batch adds to what the summed loss is divided by. Needs no model."""
        raise NotImplementedError(f"{type(self).__name__} must say what its loss is divided by")

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The summed loss, and sums of metrics that are divided by the same count, or `extremes`."""
        raise NotImplementedError(f"{type(self).__name__} must define its loss")

    def coefficients(self, batch: Batch) -> Tensor | None:
        """dLoss/dlogp, [N], where it is known before the model has run; the trainer then takes the cheaper head.

        None: the loss is not linear in the log-probabilities.
        """
        return None

    def teacher_coefficients(self, batch: Batch) -> Tensor:
        """dLoss/ddivergence, [N], of a method that has both `teacher_divergence` and `coefficients`."""
        raise NotImplementedError(f"{type(self).__name__} must say how much each divergence counts")

    def arrange(self, dataset: "Dataset", most_tokens: int | None = None) -> "Dataset":
        """The rows as the method wants them, such as with sequences that only `preview` needs.

        `most_tokens` is what the longest of them may have; None: any number.
        """
        return dataset

    def learned(self, batch: Batch) -> Batch | None:
        """The part of a batch that `loss` is given; None: nothing of it. The batch is on the CPU."""
        return batch

    def previewed(self, batch: Batch) -> Batch | None:
        """The part of a batch that `preview` is given; None: nothing of it. The batch is on the CPU."""
        return batch

    def preview(self, scores: Scores, batch: Batch) -> Tensor:
        """What the step must know of these sequences or rows: one line of numbers for each, [L, K] in fp64."""
        raise NotImplementedError(f"{type(self).__name__} looks ahead and must define preview")

    def statistics(self, lines_LK: Tensor, before: Tensor | None) -> Tensor:
        """What the losses of this step are given: made from the lines of all micro-batches of all ranks, in fp64.

        `before` is what this returned a step earlier, None in the first; checkpoints keep it. Must not depend on
        the order of the lines. The lines may be none, [0, 0].
        """
        raise NotImplementedError(f"{type(self).__name__} looks ahead and must define statistics")

    def report(self, means: dict[str, float]) -> dict[str, float]:
        """Means over the count as people read them: those in `per` over their own units, if there were any."""
        counts = set(self.per.values())
        shown = {name: value for name, value in means.items() if name not in counts | self.per.keys()}
        return shown | {n: means[n] / means[units] for n, units in self.per.items() if means[units]}
