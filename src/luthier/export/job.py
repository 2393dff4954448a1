"""What is asked of an export, and what it wrote."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import ConfigError
from luthier.runs.folder import RunFolder

if TYPE_CHECKING:
    from luthier.config.tree import Config

Told = Callable[[int, int, str], None]
"""Called with how many parts are done, of how many, and the name of the last."""


@dataclass(frozen=True)
class Job:
    """A finished run, and how it is to be written."""

    folder: RunFolder
    config: "Config"
    bar: Callable[[str], AbstractContextManager[Told]]
    """Shows how far something of this name is."""
    out: Path | None = None
    """Where to write; None: into the run's folder, where the form usually lies."""
    kind: str | None = None
    """What follows the colon of the form: the type of the weights. None: what is usual for the form."""
    base: str = "trained"
    """What is merged into after training beside weights in few bits: trained or original."""
    rows: Callable[[Path], Sequence[Sequence[int]]] = lambda folder: ()
    """Some of the run's own rows as tokens, by the tokenizer in a folder; none where they cannot be read."""
    adapter_only: bool = False
    """For engines that can: base model and adapter as two, instead of merged."""

    @property
    def whole(self) -> bool:
        """Whether the run tuned the model's own weights, so that it has no adapter."""
        return self.folder.model.is_dir()

    def target(self, *usual: str) -> Path:
        """Where to write: `out`, or a place in the run's folder."""
        return self.out if self.out is not None else self.folder.path.joinpath(*usual)


def finished(run: Path) -> RunFolder:
    """A run's folder. Raises ConfigError if the run has not finished."""
    folder = RunFolder.open(run)
    if not folder.model.is_dir() and not folder.adapter.is_dir():
        raise ConfigError(f"{run} has no adapter/ yet: it has not finished. Continue it with --resume.")
    return folder


@dataclass(frozen=True)
class Written:
    """What an export wrote."""

    what: str
    """What it is, in words."""
    path: Path
    """The file or folder that was asked for."""
    weights: Path
    """The GGUF file, or the folder in Hugging Face's or PEFT's layout, that engines load. Often `path`."""
    kind: str | None = None
    """The type of the weights in a GGUF; None for a folder."""
    notes: tuple[str, ...] = ()
    """What people should know of it, a sentence or two each."""
    how: str = ""
    """How to run it, in Markdown: for the model card."""
