"""What happens after a step: logging, evaluation, early stop, checkpoints. Plain callables, called in order."""

import math
from collections.abc import Callable

from luthier.config.tree import ModelSection
from luthier.data.ledger import Ledger
from luthier.data.loader import StepSource
from luthier.data.stream import StreamSource
from luthier.optim.average import swapped
from luthier.optim.stepper import shown_weights
from luthier.runs import audit
from luthier.runs.folder import RunFolder
from luthier.runs.metrics import MetricsWriter
from luthier.runs.progress import TrainProgress
from luthier.training.checkpoint import prune_checkpoints, save_checkpoint
from luthier.training.loop import Trainer
from luthier.training.progress import Report


def log_steps(
    writer: MetricsWriter, progress: TrainProgress, gpu_memory: Callable[[], str]
) -> Callable[[Trainer, Report], None]:
    """A row in `metrics.jsonl` and a tick of the progress display for every step. For the main rank only."""

    def hook(trainer: Trainer, report: Report) -> None:
        values = report.values | {"num_tokens": trainer.progress.tokens}
        writer.write("train", report.step, values)
        progress.total_steps = trainer.total_steps
        progress.step(report.values, gpu=gpu_memory())

    return hook


def follow_stream(
    folder: RunFolder, progress: TrainProgress, ledgers: dict[str, Ledger], say: Callable[[str], None]
) -> Callable[[Trainer, Report], None]:
    """Keeps up with a stream: what there is to say, and the ledger.

    For the main rank only.
    """
    said: set[str] = set()

    def hook(trainer: Trainer, report: Report) -> None:
        source = trainer.source
        if isinstance(source, StreamSource) and source.took_window():
            write_ledgers(folder, ledgers, source)
            for line in source.notes.lines():
                kind = line.split(" (first ")[0].lstrip("0123456789 ")
                if kind not in said:
                    said.add(kind)
                    say(line)

    return hook


def write_ledgers(folder: RunFolder, ledgers: dict[str, Ledger], source: StepSource | StreamSource) -> None:
    """Writes what became of the rows; of a stream, as far as it was read."""
    if isinstance(source, StreamSource):
        ledgers = ledgers | {"train": source.ledger}
    folder.write_json(folder.ledger, {name: ledger.to_json() for name, ledger in ledgers.items()})


class EvaluateLoss:
    """Evaluates every `every` steps and after the last, remembers the best, and stops when it stays away.

    Args:
        evaluate: the held-out loss and metrics; every rank takes part.
        every: steps between evaluations; None: only after the last.
        patience: evaluations without a better loss before the run stops; None: never.
        tell: called with the step and the values on the main rank.
    """

    def __init__(
        self,
        evaluate: Callable[[], dict[str, float]],
        every: int | None,
        patience: int | None,
        tell: Callable[[int, dict[str, float]], None],
    ):
        self.evaluate, self.every, self.patience, self.tell = evaluate, every, patience, tell

    def __call__(self, trainer: Trainer, report: Report) -> None:
        last = report.step == trainer.total_steps
        if last or (self.every is not None and report.step % self.every == 0):
            self._judge(trainer, last)

    def finish(self, trainer: Trainer) -> None:
        """Evaluates the last step, if it was not known to be the last when it was made. Every rank takes part."""
        if trainer.progress.step > trainer.progress.evaluated_step:
            self._judge(trainer, last=True)

    def _judge(self, trainer: Trainer, last: bool) -> None:
        progress = trainer.progress
        progress.evaluated_step = step = progress.step
        with swapped(shown_weights(trainer.optimizer)):
            values = self.evaluate()
        if not values:
            return
        if trainer.cluster.is_main:
            self.tell(step, values)
        best = math.inf if progress.best_loss is None else progress.best_loss
        if values["loss"] < best:  # never so for a loss that is not a number
            progress.best_loss, progress.best_step, progress.bad_evaluations = values["loss"], step, 0
            return
        progress.bad_evaluations += 1
        if self.patience and progress.bad_evaluations >= self.patience and not last:
            progress.stopping = (
                f"no better evaluation loss than {best:.4f} (step {progress.best_step}) "
                f"in {progress.bad_evaluations} evaluations"
            )


class SaveCheckpoints:
    """Saves every `every` steps and whenever an evaluation was the best so far; keeps the newest and the best."""

    def __init__(self, folder: RunFolder | None, model: ModelSection, every: int | None, keep: int):
        self.folder, self.model, self.every, self.keep = folder, model, every, keep

    def __call__(self, trainer: Trainer, report: Report) -> None:
        due = self.every is not None and report.step % self.every == 0
        if due or trainer.progress.best_step == report.step:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Saves the current step. Every rank takes part."""
        path = save_checkpoint(trainer, self.folder, self.model.name, self.model.revision)
        if self.folder is not None and path is not None:
            step = trainer.progress.step
            audit.append(self.folder.audit, "checkpoint", {"step": step, "path": f"checkpoints/{path.name}"})
            self.folder.set_status("running", step=step, num_steps=trainer.total_steps)
            prune_checkpoints(self.folder, self.keep, trainer.progress.best_step)
