"""Beginning where another run stood: a branch of it, in a folder of its own, that leaves it as it is.

That is how a run in the stable phase of wsd is ended at any of its checkpoints: only the decay is trained. Steps and
tokens are counted on from those of the other run, so that `train.steps` and the schedule mean the same in both, and
the result is, bit for bit, that of one run which had gone through.
"""

from pathlib import Path

from luthier.config.load import load_config
from luthier.config.tree import Config
from luthier.errors import ConfigError, LuthierError
from luthier.runs.audit import read_audit
from luthier.runs.folder import RunFolder
from luthier.training.checkpoint import STATE, check_seen, load_checkpoint
from luthier.training.loop import Trainer
from luthier.training.progress import Progress
from luthier.training.resume import with_absolute_paths


def find_start(config: Config) -> Path | None:
    """The checkpoint that `checkpoint.start` names; None if it names none.

    Raises:
        ConfigError: there is no such checkpoint, or its weights are not those of this config.
    """
    if config.checkpoint.start is None:
        return None
    path = Path(config.checkpoint.start)
    if not (path / STATE).is_file():
        steps = RunFolder(path).saved_steps() if path.is_dir() else []
        if not steps:
            raise ConfigError(
                f"checkpoint.start is {path}, where there is no checkpoint. Name the folder of a run that saved one "
                "(checkpoint.every), or one of its checkpoints/step-…"
            )
        path = RunFolder(path).checkpoint(steps[-1])
    before = _config_of(path)
    if before is not None and (before.lora is None) != (config.lora is None):
        has = "all weights" if before.lora is None else "an adapter (lora)"
        raise ConfigError(
            f"checkpoint.start is {path}, which holds {has}; give this run the same section lora as that one"
        )
    return path


def start_from(path: Path, trainer: Trainer, config: Config, hashes: dict[str, str]) -> str:
    """Takes over the state of another run's checkpoint; returns what a person should be told.

    The rows go on where that run stopped reading if they are the same, in the same steps; otherwise they begin.

    Raises:
        ConfigError: the run would have nothing left to do, or its length cannot be known.
    """
    check_seen(path, trainer.cluster)
    same = _same_rows(path, config, hashes)
    if not same and config.train.planned_steps is None:
        raise ConfigError(
            f"checkpoint.start is {path}, and this run reads other rows, so how many steps train.epochs are cannot "
            "be told; give train.steps or train.max_tokens, counted from the beginning of that run"
        )
    load_checkpoint(trainer, path, same_rows=same)
    before = trainer.progress
    trainer.progress = Progress(before.step, before.tokens, seconds=before.seconds)
    step, total = before.step, trainer.total_steps
    if total <= step:
        raise ConfigError(
            f"checkpoint.start is {path}, after step {step} ({before.tokens:,} tokens), and this run ends there. "
            "Steps and tokens are counted from the beginning of that run: raise train.steps, train.max_tokens or "
            "train.epochs"
        )
    rows = "rows go on where it stopped" if same else "other rows, from the first"
    return f"starting after step {step} of {total} from {path}; {rows}"


def _config_of(checkpoint: Path) -> Config | None:
    """The config of the run that a checkpoint lies in; None if it is not there."""
    try:
        return load_config(checkpoint.parent.parent / "config.yaml")
    except LuthierError:
        return None


def _same_rows(path: Path, config: Config, hashes: dict[str, str]) -> bool:
    """Whether each step has the rows that it would have had in the other run."""
    before = _config_of(path)
    if before is None:
        return False
    events = read_audit(RunFolder(path.parent.parent).audit)
    read = next((entry["detail"].get("data") for entry in events if entry["event"] == "started"), None)
    return read == hashes and _about_rows(before) == _about_rows(config)


def _about_rows(config: Config) -> tuple[object, ...]:
    """All settings that decide which rows a step has."""
    config = with_absolute_paths(config)
    method, train = config.method.name, config.train
    return config.data, config.seed, config.model.name, method, train.tokens_per_step, train.micro_tokens
