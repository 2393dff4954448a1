"""How a model turns hidden states into logits: its output embedding, and what it does to the result."""

from collections.abc import Sequence
from itertools import product
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.kernels import teacher as teachers
from luthier.kernels.divergence import Measure
from luthier.kernels.head import HeadWeight
from luthier.kernels.logprob import LogitShape, linear_loss, token_logprobs
from luthier.kernels.teacher import Teacher
from luthier.kernels.token_statistics import Statistic, token_statistics
from luthier.models.lora import LoraLinear
from luthier.models.quantised.embeddings import StoredHead
from luthier.models.token_rows import TokenRows

# Names under which configurations say that logits are multiplied, or divided, by a constant. Some families
# multiply by what others divide by, so each reading is tried and the plain model decides (see tripwire.py).
MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier", "logits_scaling")
DIVISORS = ("logits_scaling",)
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap")


class OutputHead:
    """Scores hidden states with the model's output embedding, read live, so that a trained one is followed."""

    def __init__(self, model: PreTrainedModel, shape: LogitShape):
        self.model, self.shape = model, shape

    def inputs(self, hidden_ND: Tensor) -> tuple[Tensor, HeadWeight, Tensor | None]:
        """Hidden states, weight [V, D] and bias of the output embedding, whose product are the raw logits.

        An adapter on the head widens the first two by its rank, or by the number of its tokens: folded into a 16-bit
        weight, small updates would be rounded away.
        """
        head = self.model.get_output_embeddings()
        assert isinstance(head, nn.Module)
        if isinstance(head, LoraLinear | TokenRows):
            return *head.widened(hidden_ND), head.bias
        if isinstance(head, StoredHead):
            return hidden_ND.to(head.dtype), head.decoded, head.bias
        weight, bias = head.weight, getattr(head, "bias", None)
        assert isinstance(weight, Tensor) and (bias is None or isinstance(bias, Tensor))
        return hidden_ND.to(weight.dtype), weight, bias

    def logprobs(self, hidden_ND: Tensor, target_N: Tensor) -> Tensor:
        """Log-probability of each target, [N]; any loss may follow."""
        return token_logprobs(*self.inputs(hidden_ND), target_N, self.shape)

    def statistics(
        self, hidden_ND: Tensor, target_N: Tensor, names: Sequence[Statistic]
    ) -> dict[str, Tensor]:
        """`logp` of each target and what else is asked of its distribution, [N] each."""
        return token_statistics(*self.inputs(hidden_ND), target_N, names, self.shape)

    def linear_loss(
        self, hidden_ND: Tensor, target_N: Tensor, coefficient_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Σ coefficient · logp with its gradient formed on the way, and logp [N] detached."""
        return linear_loss(*self.inputs(hidden_ND), target_N, coefficient_N, self.shape)

    def divergence(
        self, hidden_ND: Tensor, target_N: Tensor, teacher: Teacher, measure: Measure
    ) -> tuple[Tensor, Tensor]:
        """Log-probability of each target and divergence from the teacher, [N] each; any loss may follow."""
        return teachers.token_divergence(*self.inputs(hidden_ND), target_N, teacher, measure, self.shape)

    def linear_divergence(
        self,
        hidden_ND: Tensor,
        target_N: Tensor,
        teacher: Teacher,
        measure: Measure,
        coefficient_N: Tensor,
        of_divergence_N: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Σ coefficient · logp + of_divergence · divergence with its gradient, and both [N] detached."""
        hidden_ND, weight_VD, bias_V = self.inputs(hidden_ND)
        return teachers.linear_loss(
            hidden_ND,
            weight_VD,
            bias_V,
            target_N,
            teacher,
            measure,
            coefficient_N,
            of_divergence_N,
            self.shape,
        )


def possible_shapes(config: Any) -> list[LogitShape]:
    """Every reading of what the configuration says about logits, the likeliest first."""
    text = config.get_text_config()
    scales = [1 / value for name in DIVISORS if (value := _number(text, name))]
    scales += [value for name in MULTIPLIERS if (value := _number(text, name))]
    caps = [value for name in SOFTCAPS if (value := _number(text, name))]
    return [LogitShape(scale, cap) for scale, cap in product([*scales, 1.0], [*caps, None])]


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) and value else None
