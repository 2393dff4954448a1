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
    from luthier.training.verify_export import verify_written

    found = verify_written(job, written, prompts)
    if isinstance(found, str):
        print(NOT_VERIFIED.format(found))


def rows_for(config: "Config", folder: Path) -> list[list[int]]:
    """Some of the run's rows as tokens, by the tokenizer in a folder, which is told."""
    from luthier.training.own_prompts import rows_by

    rows = rows_by(config, folder)
    if rows:
        print(f"Which weights matter is measured on {len(rows)} rows, {sum(map(len, rows)):,} tokens.")
    else:
        print("None of the run's rows can be read, so it is not known which weights matter.")
    return rows
