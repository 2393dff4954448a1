"""How a run ends before its last step without losing the ones that were made."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from luthier.errors import LuthierError
from luthier.training.hooks import SaveCheckpoints
from luthier.training.loop import Trainer


def asked_to_stop(trainer: Trainer) -> str:
    """The signal that asks any rank to stop, as all ranks learn together; else empty."""
    return next(filter(None, trainer.cluster.gather(trainer.interrupted)), "")


@contextmanager
def saved_if_rows_fail(
    trainer: Trainer, saver: SaveCheckpoints, say: Callable[[str], None]
) -> Iterator[None]:
    """Keeps the steps that were made, where rows to come cannot be read or used, or their tokens not be written."""
    try:
        yield
    except LuthierError:
        if trainer.source.failed and trainer.progress.step:
            with suppress(OSError, LuthierError):  # what went wrong first is what is to be told
                saver.save(trainer)
                say(f"step {trainer.progress.step} is saved; --resume goes on from there")
        raise
