"""The model of a run as a merged folder or as a GGUF file: what several forms are made of."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from luthier.config.tree import Config
from luthier.errors import ConfigError
from luthier.export.heads import has_other_head, merge_head_to_folder
from luthier.export.job import Job
from luthier.export.merge import merge_to_folder
from luthier.export.peft import merge_peft_to_folder
from luthier.models.base import base_folder
from luthier.models.fingerprint import check_base
from luthier.models.gguf import need_packages
from luthier.models.peft_adapters.attach import peft_type_of
from luthier.models.quantised.chosen import chosen


def merge_run(job: Job, target: Path, *, wide: bool = False) -> None:
    """The run's adapter and its base model as one folder; what changes in fp32 if `wide`. Errors: see `merge`."""
    adapter = job.folder.adapter
    quantisation = chosen(job.config) if job.base == "trained" else None
    base = base_folder(job.config)
    check_base(adapter, base)
    if peft_type_of(adapter) is not None:
        merge_peft_to_folder(base, adapter, target, quantisation=quantisation, wide=wide)
        return
    if has_other_head(adapter):
        merge_head_to_folder(base, adapter, target, quantisation=quantisation)
        return
    with job.bar("merging") as progress:
        merge_to_folder(base, adapter, target, progress=progress, quantisation=quantisation, wide=wide)


def gguf_type(asked: str | None) -> str:
    """The type of a GGUF by its name. Raises ConfigError if it cannot be written, ModelError without the packages."""
    need_packages("writing a GGUF")
    from luthier.export.gguf.any_type import ALL
    from luthier.export.gguf.quantise import NAMES, need_llama_cpp

    if asked not in ALL:
        raise ConfigError(
            f"--to asks for a type of GGUF, and {asked!r} is no type that can be written. Known: {', '.join(ALL)}."
        )
    if asked in NAMES:
        need_llama_cpp(asked)
    return asked


def gguf_of_run(job: Job, target: Path, kind: str) -> tuple[str, ...]:
    """The run's model as a file. Returns what people should know of it."""
    if target.exists():
        raise ConfigError(f"{target} exists already. Remove it, or give another file with --out.")
    with model_folder(job, target, wide=kind != "bf16") as folder:
        return gguf_of_folder(job, folder, target, kind)


def gguf_of_folder(job: Job, folder: Path, target: Path, kind: str) -> tuple[str, ...]:
    """The model in a folder as a file, called as the run is. Returns what people should know of it."""
    from luthier.export.gguf.any_type import write_any

    exact, name = left_exact(job.config), job.folder.path.name
    with job.bar("writing") as progress:
        return write_any(folder, target, kind, job.rows, name=name, exact=exact, progress=progress)


@contextmanager
def model_folder(job: Job, target: Path, *, wide: bool = True) -> Iterator[Path]:
    """The folder with the run's model; an adapter is merged beside `target` first, and that folder removed again.

    wide: what an adapter changes is in fp32 there, to be rounded to something else than the base's dtype.

    Raises ConfigError for a model that scores instead of writing.
    """
    if job.whole:
        yield job.folder.model
        return
    if has_other_head(job.folder.adapter):
        raise ConfigError(
            f"{job.folder.path} trained a model that scores; a GGUF is written of models that write only."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target.parent, prefix=".merged-") as scratch:
        merged = Path(scratch) / job.folder.path.name
        merge_run(job, merged, wide=wide)
        yield merged


def new_folder(target: Path) -> Path:
    """Where a folder is to be written. Raises ConfigError if something is there."""
    if target.exists():
        raise ConfigError(f"{target} exists already. Remove it, or give another folder with --out.")
    return target


def described_in(job: Job, name: str) -> Path:
    """The folder with this file about the run's model: what was trained, or else its base."""
    trained = job.folder.model if job.whole else job.folder.adapter
    return trained if job.whole or (trained / name).is_file() else base_folder(job.config)


def left_exact(config: Config) -> list[str]:
    """Layers that a run for few bits did not round, by their names: they are not stored in these either."""
    if config.qat is None:
        return []
    return [*config.qat.skip, *(config.lora.modules_to_save if config.lora else ())]
