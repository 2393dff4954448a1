"""A run's model in the format of compressed-tensors: what several forms have in common."""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path

from luthier.errors import ConfigError, ModelError
from luthier.export.compressed.write import Made, write_compressed
from luthier.export.from_run import model_folder, new_folder
from luthier.export.job import Job, Written
from luthier.runs.atomic import atomic_folder


def write_of_run(
    job: Job, form: str, types: Collection[str], note: str, method: Callable[..., Made] | None = None
) -> Written:
    """The folder of a form.

    Args:
        form: its name, `gptq` for `--to gptq`.
        types: those that it has.
        note: what people should know of it.
        method: a `write.Maker` that also takes `rows`, tokens of some of the run's own, and `progress`; None: rounded
            to the nearest.

    Raises:
        ConfigError: there is no such type.
        ModelError: there is nothing to store so, or a method gets no rows.
    """
    kind = job.kind or ""
    if kind not in types:
        raise ConfigError(f"--to is '{form}:{kind}', and {kind!r} is not a type; known: {', '.join(types)}.")
    target = new_folder(job.target(f"{form}-{kind}"))
    with model_folder(job, target) as folder:
        rows = None if method is None else _rows(job, folder, form)
        what = "writing" if method is None else "rounding"
        with atomic_folder(target, replace=False) as inside, job.bar(what) as progress:
            if method is None:
                stay = write_compressed(folder, inside, kind, progress=progress)
            else:
                make = partial(method, rows=rows, progress=progress)
                stay = write_compressed(folder, inside, kind, make=make)
    notes = [note]
    if stay:
        notes.append(
            f"{len(stay)} linear layers do not divide into its groups and stay in 16 bits, such as {stay[0]}."
        )
    name = kind if method is None else f"{form}-{kind}"
    return Written(f"model in {name}", target, target, name, tuple(notes), f"    vllm serve {target.name}")


def _rows(job: Job, folder: Path, form: str) -> Sequence[Sequence[int]]:
    """Tokens of some of the run's rows."""
    if rows := job.rows(folder):
        return rows
    raise ModelError(
        f"{form} rounds with the run's own rows, and none of them can be read. Bring them back, or write "
        f"compressed:{job.kind}, which needs none."
    )
