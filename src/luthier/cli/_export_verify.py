"""The end of `luthier export`: is what was written what was trained?"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from luthier.config.tree import Config
    from luthier.export.job import Job, Written

NOT_VERIFIED = "Not verified: {}. Nothing was compared with the model that was trained."


def prove(job: "Job", written: "Written", prompts: int) -> None:
    """Compares what was written with what was trained, and tells it; without prompts, or where there is nothing to
    compare, tells that.

    Raises RunError if it is another model.
    """
    if not prompts:
        print(NOT_VERIFIED.format("--no-verify was given"))
        return
    from luthier.models.head_files import read_head
    from luthier.training.verify_export import form_of, verify_export

    if read_head(job.folder.model if job.whole else job.folder.adapter) is not None:
        print(NOT_VERIFIED.format("this model scores and writes no text"))
        return
    form = form_of(written)
    if form is None:
        print(NOT_VERIFIED.format("there is no program here that runs this form by itself"))
        return
    verify_export(
        job.config, job.folder, written.weights, form, whole=written.path, base=job.base, prompts=prompts
    )


def rows_for(config: "Config", folder: Path) -> list[list[int]]:
    """Some of the run's rows as tokens, by the tokenizer in a folder, which is told."""
    from luthier.training.own_prompts import rows_by

    rows = rows_by(config, folder)
    if rows:
        print(f"Which weights matter is measured on {len(rows)} rows, {sum(map(len, rows)):,} tokens.")
    else:
        print("None of the run's rows can be read, so weights are rounded as if all mattered alike.")
    return rows
