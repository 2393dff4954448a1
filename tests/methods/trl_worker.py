"""Run by the Python that has TRL: TRL's own loss functions on given log-probabilities. JSON in, JSON out.

Trainers are not built: their loss functions are called with what they read from `self`, and with models that return
the log-probabilities. Each case: kind, settings, logp and reference [rows][tokens] (rows: all chosen, then all
rejected), log_squares [rows][tokens], lengths, labels and kl where the method has them. Answers: loss, gradient of
logp, metrics.
"""

import contextlib
import json
import sys
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class Model(torch.nn.Module):
    """Answers every call with the same log-probabilities."""

    is_gradient_checkpointing = False

    def __init__(self, logp: Tensor, log_squares: Tensor | None = None):
        super().__init__()
        self.outputs = SimpleNamespace(
            log_probs=logp,
            log_sum_sq_probs=log_squares,
            entropy=torch.zeros_like(logp),
            mean_logits=torch.zeros_like(logp),
            is_top1=torch.zeros_like(logp, dtype=torch.bool),
        )

    def forward(self, **inputs: Any) -> SimpleNamespace:
        return self.outputs


def trainer(case: dict[str, Any], logp: Tensor) -> SimpleNamespace:
    """What TRL's loss functions read from the trainer."""
    same = lambda value: value  # noqa: E731
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=same, gather_for_metrics=same, unwrap_model=same
    )
    made = SimpleNamespace(
        model=Model(logp, torch.tensor(case["log_squares"])),
        ref_model=Model(torch.tensor(case["reference"])),
        accelerator=accelerator,
        aux_loss_enabled=False,
        precompute_ref_logps=False,
        use_weighting=False,
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, discopop_tau=0.05),
        ld_alpha=None,
        f_divergence_type="reverse_kl",
        f_alpha_divergence_coef=0.5,
        label_smoothing=0.0,
        beta=0.1,
        alpha=0.0,
        desirable_weight=1.0,
        undesirable_weight=1.0,
    )
    for name, value in case["settings"].items():
        setattr(made, name, value)
    return made


def inputs(case: dict[str, Any], logp: Tensor) -> dict[str, Tensor]:
    """A batch as TRL's collators make it: one prompt token, then the answer, then padding."""
    place = torch.arange(logp.shape[1] + 1)
    mask = (place[None] >= 1) & (place[None] <= torch.tensor(case["lengths"])[:, None])
    ids = torch.ones(mask.shape, dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "completion_mask": mask.long()}


def loss_of(case: dict[str, Any], logp: Tensor) -> tuple[Tensor, dict[str, float]]:
    me, lengths = trainer(case, logp), torch.tensor(case["lengths"])
    if case["kind"] == "tpo":
        from trl.experimental.tpo.tpo_trainer import TPOTrainer

        # two tokens in the vocabulary: that of the answer and what is left
        spread = torch.stack([torch.log(-torch.expm1(logp.clamp(max=-1e-6))), logp], -1)
        logits = torch.cat([spread, torch.zeros_like(spread[:, :1])], 1)
        model = lambda **kwargs: SimpleNamespace(logits=logits)  # noqa: E731
        loss = TPOTrainer._compute_loss(me, model, inputs(case, logp), False)
    elif case["kind"] == "dpo":
        from trl.trainer.dpo_trainer import DPOTrainer

        loss = DPOTrainer._compute_loss(me, me.model, inputs(case, logp), False)
    elif case["kind"] == "kto":
        from trl.trainer.kto_trainer import KTOTrainer

        me.calculate_KL = me.loss_type == "kto"
        kl = {id(me.model): torch.tensor(case["kl"]), id(me.ref_model): torch.zeros(len(case["kl"]))}
        me._compute_kl_logps = lambda model, batch: kl[id(model)]
        batch = inputs(case, logp) | {"label": torch.tensor(case["labels"])}
        loss = KTOTrainer._compute_loss(me, me.model, batch, False)
    else:
        chosen, rejected = (logp.sum(1) / (lengths if case["mean"] else 1)).chunk(2)
        if case["kind"] == "orpo":
            from trl.experimental.orpo.orpo_trainer import ORPOTrainer

            loss = -ORPOTrainer.odds_ratio_loss(me, chosen, rejected)[0].mean()
        else:
            from trl.experimental.cpo.cpo_trainer import CPOTrainer

            loss = CPOTrainer.cpo_loss(me, chosen, rejected)[0].mean()
    return loss, {n: float(v[-1]) for n, v in me._metrics["train"].items() if isinstance(v[-1], float)}


def main() -> None:
    answers = []
    for case in json.load(sys.stdin):
        logp = torch.tensor(case["logp"], requires_grad=True)
        with contextlib.redirect_stdout(sys.stderr):
            loss, metrics = loss_of(case, logp)
        loss.backward()
        answers.append({"loss": loss.item(), "gradient": logp.grad.tolist(), "metrics": metrics})
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
