"""A run written in a form and compared with what was trained: `luthier.export_run`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from luthier.config.load import load_config
from luthier.export.forms import chosen_form
from luthier.export.job import Job, Told, finished
from luthier.export.verify.verdict import Verdict, size_of
from luthier.training.own_prompts import rows_by
from luthier.training.verify_export import verify_written


@dataclass(frozen=True)
class Exported:
    """What was written, and how far it lies from what was trained."""

    path: Path
    size: int
    """Bytes on disk."""
    verdict: Verdict | None
    """None: nothing was compared."""


def export_run(
    run: Path, to: str, out: Path | None, *, prompts: int, say: Callable[[str], None] = print
) -> Exported:
    """Writes a finished run as `luthier export` does, and compares it unless `prompts` is 0.

    Raises:
        ConfigError: the run has not finished, or the form cannot be written.
        RunError: it is not the model that was trained.
    """
    write, kind = chosen_form(to)
    folder = finished(run)
    config = load_config(folder.config)
    job = Job(folder, config, _no_bar, out, kind, rows=lambda where: rows_by(config, where))
    written = write(job)
    found = verify_written(job, written, prompts, say) if prompts else "it was not asked for"
    if isinstance(found, str):
        say(f"Not verified: {found}.")
    for note in written.notes:
        say(note)
    return Exported(written.path, size_of(written.path), None if isinstance(found, str) else found)


@contextmanager
def _no_bar(what: str) -> Iterator[Told]:
    yield lambda done, total, name: None
