"""Direct preference optimisation: make the chosen answer likelier than the rejected one, compared with before.

loss = -log σ(beta · (h_c - h_r)),   h = log π(y|x) - log π_ref(y|x),   averaged over the pairs of a step

    sigmoid       -(1-e) log σ(bD) - e log σ(-bD)                    DPO, arXiv:2305.18290; e > 0: cDPO
    hinge         max(0, 1 - bD)                                     SLiC 2305.10425, RSO 2309.06657
    ipo           (f_c/|y_c| - f_r/|y_r| - 1/(2b))²                  2310.12036, length-normalised
    exo_pair      KL(model's preference ‖ labels with error e)       2402.00856
    nca_pair      -log σ(b h_c) - ½ log σ(-b h_c) - ½ log σ(-b h_r)  2402.05369
    robust        unbiased for labels that are wrong with rate e     2403.00409
    bco_pair      -log σ(b h_c) - log σ(-b h_r)                      2404.04656, without its running mean
    sppo_hard     (h_c - 1/(2b))² + (h_r + 1/(2b))²                  2405.00675
    aot, aot_pair -log σ(b(difference of sorted values))             2406.05882
    apo_zero      1 - σ(b h_c) + σ(b h_r)                            2408.06266
    apo_down      σ(b h_c) + 1 - σ(b(h_c - h_r))                     2408.06266
    discopop      a blend of logistic and exponential loss           2406.08414
    sigmoid_norm  -log σ(b(f_c/|y_c| - f_r/|y_r|))                   Tulu 3, 2411.15124
    sft           -log π(y_c|x) / |y_c|                              RPO, IRPO, MPO

`aot` sorts over the whole step what the model and what the reference say of the pairs (TRL's `aot`); `aot_pair` is
TRL's `aot_unpaired`: h of the chosen answers against h of the rejected ones. Both cost one more forward pass.

`wpo` weighs each pair's whole loss by how likely the model itself is to give its answers (2406.11827).

A reference that follows the model (TR-DPO, 2404.09656), another model as reference, or one that is computed once:
the section `reference`, see docs/reference.md.

When: pairs of a better and a worse answer, after supervised fine-tuning. Watch rewards/accuracies (above 0.5 and
rising) and rewards/margins; logps/chosen often falls, which an `sft` term prevents.

Deviations from TRL: aot sorts over the step, not over a micro-batch, so its value does not depend on memory
settings; `sigmoid` heeds label_smoothing; `sft` is a mean over pairs of means over tokens.
"""

from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.data.batch import Batch
from luthier.errors import ConfigError
from luthier.kernels.token_statistics import Statistic
from luthier.methods import _preference, _ranks, _sequences, _tokens
from luthier.methods.base import Method, Reads, Scores

Loss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_pair",
    "apo_zero", "apo_down", "discopop", "sigmoid_norm", "sft",
]  # fmt: skip
SORTED = ("aot", "aot_pair")


@settings
class DPO(Method):
    """Preference pairs against the model before training: DPO and the losses derived from it."""

    beta: Annotated[float, Field(gt=0)] = 0.1
    """How closely the model is held to the reference; larger is closer."""

    loss_type: Loss | tuple[Loss, ...] = "sigmoid"
    """The formula, or several that are added up with `loss_weights`."""

    loss_weights: tuple[float, ...] = ()
    """Factor of each formula; none: 1 for each."""

    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Share of pairs whose answers are taken to be the wrong way round."""

    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    """What holds the model to the reference. Losses on h_c and h_r alone do not heed it."""

    alpha: float = 0.5
    """Order of the alpha divergence."""

    ld_alpha: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Weight of tokens beyond the length of the pair's shorter answer (LD-DPO, arXiv:2409.06411)."""

    discopop_tau: Annotated[float, Field(gt=0)] = 0.05
    """Temperature of the blend in discopop."""

    wpo: bool = False
    """Weigh each pair by how likely the model is to give its two answers (WPO, arXiv:2406.11827)."""

    token_metrics: bool = False
    """Also report the entropy of the predictions, and how often a chosen token was the likeliest one."""

    reads: ClassVar[Reads] = "pair"
    metrics: ClassVar[tuple[str, ...]] = (*_preference.METRICS, "nll_loss", *_tokens.METRICS)
    per: ClassVar[dict[str, str]] = _tokens.PER

    def __post_init__(self) -> None:
        if self.loss_weights and len(self.loss_weights) != len(self._losses):
            raise ConfigError(
                f"method.loss_weights has {len(self.loss_weights)} numbers for {len(self._losses)} losses in "
                "method.loss_type; give one for each, or none"
            )
        if "exo_pair" in self._losses and self.label_smoothing == 0:
            raise ConfigError(
                "method.loss_type exo_pair compares with labels that are wrong now and then, and "
                "method.label_smoothing is 0, which makes it infinite; set it to 0.001"
            )
        if len(set(SORTED) & set(self._losses)) > 1:
            raise ConfigError("method.loss_type has both aot and aot_pair; choose one")
        if self.wpo and self.looks_ahead:
            raise ConfigError(
                "method.wpo weighs each pair, and method.loss_type aot or aot_pair compares with the pairs of the "
                "whole step, so no loss belongs to one pair; set wpo: false or take another loss_type"
            )

    @property
    def _losses(self) -> tuple[str, ...]:
        return (self.loss_type,) if isinstance(self.loss_type, str) else self.loss_type

    @property
    def needs_reference(self) -> bool:
        return True

    @property
    def needs_distribution(self) -> tuple[Statistic, ...]:
        squares: tuple[Statistic, ...] = ("log_squares",) if self.wpo else ()
        return (*squares, *_tokens.NEEDS) if self.token_metrics else squares

    @property
    def looks_ahead(self) -> bool:
        return any(name in SORTED for name in self._losses)

    def count(self, batch: Batch) -> float:
        return _preference.count_pairs(batch)

    def loss(self, scores: Scores, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        logp_Q, reference_Q = self._logps(scores, batch)
        (c, r), (length_c, length_r) = map(
            _sequences.pairs, (logp_Q - reference_Q, _sequences.lengths(batch))
        )
        f_c, f_r = (_preference.score(h, self.divergence, self.alpha) for h in (c, r))
        pairs = _preference.Pairs(
            c, r, f_c, f_r, length_c, length_r, self.beta, self.label_smoothing, self.discopop_tau
        )
        mask_P, _ = _sequences.pairs(_sequences.real(batch))
        nll_P = -_sequences.pairs(_sequences.sums(scores.logp_N, batch))[0] / length_c
        loss_P = torch.zeros_like(c)
        for name, weight in zip(self._losses, self.loss_weights or [1.0] * len(self._losses), strict=True):
            if name in SORTED:
                value_P = self._sorted(name, logp_Q, reference_Q, scores.step, batch)
            else:
                value_P = nll_P if name == "sft" else _preference.FORMULAS[name](pairs)
            loss_P = loss_P + weight * value_P
        if self.wpo:
            loss_P = loss_P * _preference.on_policy_weight(
                scores.logp_N, scores.distribution["log_squares"], batch
            )
        found = _preference.metrics(self.beta * c, self.beta * r, logp_Q, mask_P)
        found |= _tokens.metrics(scores, batch, torch.arange(len(logp_Q), device=logp_Q.device) % 2 == 0)
        return _sequences.total(loss_P, mask_P), found | {"nll_loss": _sequences.total(nll_P, mask_P)}

    def preview(self, scores: Scores, batch: Batch) -> Tensor:
        row_Q, mask_P = batch.columns["row"], _sequences.pairs(_sequences.real(batch))[0]
        both = self._transported("aot" in self._losses, *self._logps(scores, batch))
        return torch.stack([_sequences.pairs(row_Q)[0].double(), *(x.double() for x in both)], 1)[mask_P]

    def statistics(self, lines_LK: Tensor, before: Tensor | None) -> Tensor:
        return _ranks.table(lines_LK)

    def _logps(self, scores: Scores, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed log-probability of each sequence by the model and by the reference, [Q]."""
        assert scores.reference_N is not None
        weight_N = batch.weight_N
        if self.ld_alpha != 1:
            size_Q = _sequences.sums(
                weight_N.new_ones(len(weight_N)), batch, (weight_N > 0).to(weight_N.dtype)
            )
            shorter_P = torch.minimum(*_sequences.pairs(size_Q))
            shared_Q = torch.zeros_like(size_Q)
            shared_Q[: 2 * len(shorter_P)] = shorter_P.repeat_interleave(2)
            beyond_N = _sequences.place_in_sequence(batch) >= shared_Q[batch.sequence_N]
            weight_N = torch.where(beyond_N, self.ld_alpha * weight_N, weight_N)
        logp_Q = _sequences.sums(scores.logp_N, batch, weight_N)
        return logp_Q, _sequences.sums(scores.reference_N, batch, weight_N)

    @staticmethod
    def _transported(paired: bool, logp_Q: Tensor, reference_Q: Tensor) -> tuple[Tensor, Tensor]:
        """The two sets of numbers that AOT sorts, [P] each."""
        if not paired:
            return _sequences.pairs(logp_Q - reference_Q)
        (c, r), (reference_c, reference_r) = map(_sequences.pairs, (logp_Q, reference_Q))
        return c - r, reference_c - reference_r

    def _sorted(
        self, name: str, logp_Q: Tensor, reference_Q: Tensor, step: Tensor | None, batch: Batch
    ) -> Tensor:
        """AOT per pair: each value against the one of its rank in the step.

        The first set gives value and gradient, the second one the gradient alone: every difference counts once.
        """
        assert step is not None, "the step was looked at beforehand"
        a_P, b_P = self._transported(name == "aot", logp_Q, reference_Q)
        of_a, of_b = (x.to(a_P) for x in _ranks.partners(step, _sequences.pairs(batch.columns["row"])[0]))
        first_P = _preference.logistic(self.beta * (a_P - of_a), self.label_smoothing)
        second_P = _preference.logistic(self.beta * (of_b - b_P), self.label_smoothing)
        return first_P + second_P - second_P.detach()
