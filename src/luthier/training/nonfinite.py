"""What to say when a step's loss or gradient is not a finite number: which rows did it, or that the weights did."""

from typing import TYPE_CHECKING, NoReturn

import torch

from luthier.data.batch import Batch
from luthier.errors import RunError

if TYPE_CHECKING:
    from luthier.training.loop import Trainer

SHOWN = 8


def explain_nonfinite(trainer: "Trainer", micro_batches: list[Batch], values: dict[str, float]) -> NoReturn:
    """Raises RunError that names the offending rows of all ranks. The weights were not updated with this step, unless
    updates come within the backward pass."""
    partly = trainer.gradients.is_spent()
    trainer.gradients.clear()
    broken = [n for n, p in trainer.policy.named_parameters() if not torch.isfinite(p).all()]
    mine: list[int] = []
    if not broken:
        for batch in micro_batches:
            mine += _bad_rows(trainer, batch.to(trainer.device))
        trainer.gradients.clear()
    rows = sorted({row for rank in trainer.cluster.gather(mine) for row in rank})
    found = (
        f"step {trainer.progress.step + 1}: loss {values['loss']:g}, gradient norm {values['grad_norm']:g}. "
    )
    if broken:
        cause = f"The weights themselves are not finite any more ({broken[0]} and {len(broken) - 1} others). "
    elif rows:
        named = [trainer.source.locate(row) for row in rows[:SHOWN]]
        more = f" and {len(rows) - SHOWN} more" if len(rows) > SHOWN else ""
        cause = f"It comes from {', '.join(named)}{more}. "
    else:
        cause = "No single row gives it, only their sum. "
    applied = "This step was applied to some weights." if partly else "This step was not applied."
    raise RunError(
        f"{found}{cause}{applied} Look at these rows with `luthier data inspect`, "
        "or lower optim.lr; then continue from the last checkpoint with --resume."
    )


def _bad_rows(trainer: "Trainer", batch: Batch) -> list[int]:
    """Rows of the batch whose log-probabilities are not finite; else all of them if its gradient is not."""
    with torch.no_grad():
        finite_N = torch.isfinite(trainer.policy(batch))
    rows_Q = batch.columns["row"]
    bad = rows_Q[batch.sequence_N[~finite_N].unique()]
    if bad.numel():
        return [int(row) for row in bad]
    trainer.gradients.clear()
    trainer.learner.loss(batch)[0].backward()
    gradients = [p.grad for p in trainer.parameters if p.grad is not None]
    if all(bool(torch.isfinite(gradient).all()) for gradient in gradients):
        return []
    return [int(row) for row in rows_Q]
