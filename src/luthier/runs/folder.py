"""A run's folder: where each of its files lies, how it is made, opened and taken up again.

config.yaml  metrics.jsonl  samples.jsonl  ledger.json  audit.jsonl  environment.json  status.json
checkpoints/step-N/  adapter/ or model/  report.html
"""

import errno
import json
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from luthier.errors import ConfigError, RunError
from luthier.runs.atomic import atomic_folder, atomic_write_text, recover
from luthier.runs.status import RunStatus, State, read_status

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

_NOT_OURS = {errno.EROFS, errno.EACCES, errno.EPERM}


@dataclass(frozen=True)
class RunFolder:
    """The folder that describes one run: what was asked, what happened, what came out."""

    path: Path

    @classmethod
    def create(cls, root: Path | str, name: str, *, config_yaml: str) -> Self:
        """A new folder `root/name` with the resolved config in it and a state of `running`.

        Raises ConfigError where the name or the root cannot be used or the folder is taken, and RunError
        where the disk is full. Nothing is left behind then, and nothing that was there is changed.
        """
        root = Path(root)
        if not NAME.fullmatch(name):
            raise ConfigError(
                f"run.name is {name!r}; it must begin with a letter or a digit, hold only letters, digits, "
                "`.`, `_` and `-`, and have at most 128 of them. Change run.name."
            )
        _usable_root(root)
        path = root / name
        for place in (root, path):
            if place.is_dir():
                recover(place)
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{path} is a file, so the run cannot have it as its folder. Change run.name.")
        try:
            with atomic_folder(path, replace=False) as folder:
                (folder / "checkpoints").mkdir()
                atomic_write_text(folder / "config.yaml", config_yaml)
                atomic_write_text(folder / "status.json", RunStatus.begin().to_json())
        except FileExistsError as error:
            raise ConfigError(_taken(path)) from error
        except OSError as error:
            raise ConfigError(
                f"{path} cannot be made: {error.strerror or error}. Change run.root."
            ) from error
        except RunError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _NOT_OURS:
                raise ConfigError(str(error)) from error
            raise
        return cls(path)

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """An existing run, to look at. Clears what killed processes left in it.

        Raises ConfigError where there is no run at `path`.
        """
        folder = cls(Path(path))
        if not folder.path.is_dir():
            raise ConfigError(
                f"{folder.path} is not a folder, so there is no run in it. `luthier runs list` shows runs."
            )
        if not folder.config.is_file() and not folder.status_file.is_file():
            raise ConfigError(
                f"{folder.path} holds neither config.yaml nor status.json, so it is not the folder of a run. "
                "`luthier runs list` shows runs."
            )
        folder._recover(sole_writer=False)
        return folder

    @classmethod
    def resume(cls, path: Path | str) -> Self:
        """An existing run, taken over by this process: its state becomes `running` again.

        Raises ConfigError where there is no run at `path` or its process still works on it.
        """
        folder = cls.open(path)
        try:
            status = read_status(folder.status_file)
        except RunError:
            status = RunStatus.begin()  # a broken state is no reason to lose a run with good checkpoints
        if status.state == "running" and status.is_alive() and status.process != RunStatus.begin().process:
            raise ConfigError(
                f"{folder.path} is still being worked on by process {status.pid}, and two would damage each "
                "other's files. Stop that process first, or start a new run under another `run.name`."
            )
        folder._recover(sole_writer=True)
        folder._write_status(status.again())
        return folder

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.absolute().name

    @property
    def config(self) -> Path:
        """The resolved config as YAML."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Numbers over the steps: see `metrics`."""
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """Answers before and after training: see `samples`."""
        return self.path / "samples.jsonl"

    @property
    def ledger(self) -> Path:
        """What became of every input row."""
        return self.path / "ledger.json"

    @property
    def audit(self) -> Path:
        """The chain of events: see `audit`."""
        return self.path / "audit.jsonl"

    @property
    def environment(self) -> Path:
        """What the run ran on: see `environment`."""
        return self.path / "environment.json"

    @property
    def status_file(self) -> Path:
        """Where the run stands: see `status`."""
        return self.path / "status.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints, `step-N` each."""
        return self.path / "checkpoints"

    @property
    def adapter(self) -> Path:
        """The trained adapter in PEFT's layout."""
        return self.path / "adapter"

    @property
    def model(self) -> Path:
        """The trained model in Hugging Face's layout."""
        return self.path / "model"

    @property
    def report(self) -> Path:
        """The report, one HTML file."""
        return self.path / "report.html"

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint of one step. Write it with `atomic_folder`."""
        return self.checkpoints / f"step-{step}"

    def saved_steps(self) -> list[int]:
        """Steps that have a whole checkpoint, oldest first."""
        names = [path.name for path in self.checkpoints.glob("step-*") if path.is_dir()]
        return sorted(int(name[5:]) for name in names if re.fullmatch(r"step-\d+", name))

    def status(self) -> RunStatus:
        """Where the run stands. Raises RunError where that cannot be read."""
        return read_status(self.status_file)

    def set_status(
        self, state: State, *, step: int | None = None, num_steps: int | None = None, message: str = ""
    ) -> RunStatus:
        """Writes where the run stands; what is not given stays. Every state but `running` ends the run."""
        status = self.status().moved(state, step, num_steps, message)
        self._write_status(status)
        return status

    def write_json(self, path: Path, content: dict[str, Any]) -> None:
        """Writes `ledger`, `environment` or another JSON file of the run, whole or not at all."""
        atomic_write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def _write_status(self, status: RunStatus) -> None:
        atomic_write_text(self.status_file, status.to_json())

    def _recover(self, *, sole_writer: bool) -> None:
        recover(self.path, sole_writer=sole_writer)
        recover(self.checkpoints, sole_writer=sole_writer)


def default_name(method: str, model: str, now: datetime) -> str:
    """A name for a run without one: method, model and time, such as `sft-Qwen3-0.6B-20250719-143005`."""
    model = re.sub(r"^demo:", "", model.rstrip("/")).rsplit("/", 1)[-1]
    parts = [Path(method).stem, re.sub(r"\.gguf$", "", model, flags=re.IGNORECASE)]
    clean = [re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-._")[:50] for part in parts]
    return "-".join([*(part for part in clean if part), f"{now:%Y%m%d-%H%M%S}"])


def _usable_root(root: Path) -> None:
    for place in (root, *root.parents):
        if place.exists() and not place.is_dir():
            raise ConfigError(
                f"run.root is {root}, but {place} is a file, so no folder can be made in it. Change run.root."
            )


def _taken(path: Path) -> str:
    return (
        f"{path} exists and is not empty; a new run would overwrite it. Set run.name to another name, "
        "or continue that run with --resume."
    )
