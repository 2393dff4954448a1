"""Beginning where another run stood: a branch of it, in a folder of its own, that leaves it as it is.

That is how a run in the stable phase of wsd is ended at any of its checkpoints: only the decay is trained. Steps and
tokens are counted on from those of the other run, so that `train.steps` and the schedule mean the same in both, and
the result is, bit for bit, that of one run which had gone through.

Which checkpoint it is, and the day that templates are told, are settled when the branch is made and kept in its config.
"""

from pathlib import Path

from luthier.config.load import load_config
from luthier.config.lora_section import LoraSection
from luthier.config.tree import Config
from luthier.errors import ConfigError, LuthierError
from luthier.methods.base import Method
from luthier.runs.audit import read_audit
from luthier.runs.folder import RunFolder
from luthier.training.checkpoint import STATE, check_seen, load_checkpoint
from luthier.training.loop import Trainer
from luthier.training.progress import Progress
from luthier.training.resume import dated, with_absolute_paths
from luthier.training.rows import data_hashes
from luthier.training.tune import new_layers

NOT_ABOUT_ROWS = {"eval_path", "max_drop_fraction", "share_prefixes", "workers", "cache"}
"""Keys of `data` that do not change what is learned from."""
NOT_ABOUT_SHAPES = {"dropout", "train_a", "plus_ratio"}
"""Keys of `lora` that may be others than those of the run that a checkpoint is of."""


def settled(config: Config, method: Method) -> Config:
    """The config of a new run with the checkpoint that it begins at and, if it names none, the day of that run.

    Raises:
        ConfigError: see `find_start`.
    """
    path = find_start(config, method)
    if path is None:
        return config
    before = _config_of(path)
    checkpoint = config.checkpoint.model_copy(update={"start": str(path)})
    return dated(config.model_copy(update={"checkpoint": checkpoint}), before.data.date if before else None)


def find_start(config: Config, method: Method) -> Path | None:
    """The checkpoint that `checkpoint.start` names; None if it names none.

    Raises:
        ConfigError: there is no such checkpoint, its weights are not those of this config, or the method would
            compare with a model that is not the one it begins with.
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
    if before is not None and before.has_adapter != config.has_adapter:
        has = "an adapter" if before.has_adapter else "all weights"
        raise ConfigError(
            f"checkpoint.start is {path}, which holds {has}; give this run the same section lora or peft as that one"
        )
    if before is not None and new_layers(before) != new_layers(config):
        raise ConfigError(
            f"checkpoint.start is {path}, of a run that added {new_layers(before)} layers (tune: expand), and this run "
            f"adds {new_layers(config)}; give this run the same tune.blocks as that one"
        )
    if before is not None and before.lora is not None and config.lora is not None:
        _check_adapter(path, before.lora, config.lora)
    if before is not None:
        _check_reference(path, before, config, method)
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


def _check_adapter(path: Path, before: LoraSection, lora: LoraSection) -> None:
    """Refuses adapters of other ranks, on other modules or of another kind than those that the checkpoint has."""
    if before.start is not None or lora.start is not None:
        return  # what an adapter from elsewhere is like is seen when its values are read
    there, here = (one.model_dump(mode="json", exclude=NOT_ABOUT_SHAPES) for one in (before, lora))
    if others := [f"{key} {there[key]} there, {here[key]} here" for key in here if there[key] != here[key]]:
        raise ConfigError(
            f"checkpoint.start is {path}, whose adapter is of another shape (lora: {'; '.join(others)}). Give this run "
            "the same section lora, or go on with that adapter alone: lora.start in the place of checkpoint.start"
        )


def _check_reference(path: Path, before: Config, config: Config, method: Method) -> None:
    """Refuses a method that would compare with the model that the other run began with, before it learned anything."""
    if not method.needs_reference or config.reference.name is not None:
        return
    if before.method.name == config.method.name:
        return
    trunk = path.parent.parent
    advice = f"model: {RunFolder(trunk).model}"
    if before.has_adapter:
        advice = f"model: {trunk / 'merged'}, after `luthier export {trunk} --to merged`"
    raise ConfigError(
        f"checkpoint.start is {path} of a run of {before.method.name}, and {config.method.name} compares with a "
        f"reference, which would be the model before that run's training. Leave out checkpoint.start and give {advice}"
    )


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
    if _about_rows(before) != _about_rows(config):
        return False
    if read == hashes:
        return True
    try:  # they differ also where only the held-out rows are others
        return before.data.eval_path != config.data.eval_path and read == data_hashes(before)
    except LuthierError:
        return False


def _about_rows(config: Config) -> tuple[object, ...]:
    """All settings that decide which rows a step has."""
    config = with_absolute_paths(config)
    method, train = config.method.name, config.train
    besides = NOT_ABOUT_ROWS - ({"eval_path"} if config.data.clean.eval_overlap is not None else set())
    data = config.data.model_dump(exclude=besides)
    return data, config.seed, config.model.name, method, train.tokens_per_step, train.micro_tokens
