"""Which run to continue, and whether it may be continued with this config."""

from pathlib import Path

from luthier.config.dump import config_diff, dump_config
from luthier.config.load import load_config
from luthier.config.paths import absolute_data
from luthier.config.plugins import is_own_file
from luthier.config.tree import Config
from luthier.errors import ConfigError, LuthierError
from luthier.runs.atomic import atomic_write_text
from luthier.runs.audit import read_audit
from luthier.runs.folder import RunFolder


def find_run_to_resume(config: Config) -> Path:
    """The run called `run.name`; without a name the newest unfinished one in `run.root` with this config.

    Raises:
        ConfigError: there is none.
    """
    root = Path(config.run.root)
    if config.run.name is not None:
        if not (root / config.run.name).is_dir():
            raise ConfigError(
                f"there is no run {root / config.run.name} to resume; leave out --resume to start it."
            )
        return root / config.run.name
    candidates = sorted(root.glob("*/config.yaml"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in candidates:
        try:
            if _unfinished(path.parent) and not _changes(load_config(path), config):
                return path.parent
        except LuthierError:
            continue  # a broken neighbour is not the run that is looked for
    raise ConfigError(
        f"no unfinished run in {root} was started with this config. Name the one to resume with run.name=NAME "
        "(`luthier runs list` shows them)."
    )


def check_same_config(config: Config, folder: RunFolder, allow_changes: bool) -> bool:
    """Whether the config is the run's own. Refuses another one, with the differences, unless it is allowed.

    Raises:
        ConfigError: it differs, so the result would be that of neither config.
    """
    changes = _changes(load_config(folder.config), config)
    if changes and not allow_changes:
        raise ConfigError(
            f"{folder.path} was started with another config, so resuming would give the result of neither:\n  "
            + "\n  ".join(changes)
            + "\nUndo the changes, start a new run, or resume all the same with --allow-changes."
        )
    return not changes


def check_same_data(hashes: dict[str, str], folder: RunFolder, allow_changes: bool) -> None:
    """Refuses to go on over other data than the run was started with, unless that is allowed.

    Raises:
        ConfigError: a file has changed, so its rows would be learned from out of place.
    """
    started = [
        entry["detail"].get("data") for entry in read_audit(folder.audit) if entry["event"] == "started"
    ]
    if allow_changes or not started or started[0] == hashes:
        return
    changed = sorted(name for name in {*started[0], *hashes} if started[0].get(name) != hashes.get(name))
    raise ConfigError(
        f"the data of {folder.path} has changed since it was started ({', '.join(changed)}), so resuming would "
        "learn from other rows. Put the files back, start a new run, or resume all the same with --allow-changes."
    )


def keep_config(config: Config, folder: RunFolder) -> None:
    """Writes the config that a resumed run goes on with."""
    named = config.model_copy(update={"run": config.run.model_copy(update={"name": folder.name})})
    atomic_write_text(folder.config, dump_config(named))


def dated(config: Config, day: str | None) -> Config:
    """The config with this day for templates that have a clock, if it names none itself."""
    if config.data.date is not None or day is None:
        return config
    return config.model_copy(update={"data": config.data.model_copy(update={"date": day})})


def as_begun(config: Config, begun: Config) -> Config:
    """The config with what was settled when its run began: the day, and which checkpoint of another run it began at."""
    config, start = dated(config, begun.data.date), begun.checkpoint.start
    if start is None or config.checkpoint.start != str(Path(start).parent.parent):
        return config
    return config.model_copy(update={"checkpoint": config.checkpoint.model_copy(update={"start": start})})


def with_absolute_paths(config: Config) -> Config:
    """The config with local files and folders named so that the run can be used from everywhere."""

    def absolute(name: str | None) -> str | None:
        return str(Path(name).absolute()) if name is not None and Path(name).exists() else name

    def all_absolute(names: list[str] | None) -> list[str] | None:
        return [absolute_data(name) for name in names] if names is not None else None

    data = config.data.model_copy(
        update={
            "path": all_absolute(config.data.path),
            "sets": [one.model_copy(update={"path": absolute_data(one.path)}) for one in config.data.sets],
            "eval_path": all_absolute(config.data.eval_path),
            "template": absolute(config.data.template),
        }
    )
    start = config.checkpoint.start  # a run may have outlived the one that it began at
    start = str(Path(start).absolute()) if start is not None else None
    checkpoint = config.checkpoint.model_copy(update={"start": start})
    model = config.model.model_copy(update={"name": absolute(config.model.name)})
    reference = config.reference.model_copy(update={"name": absolute(config.reference.name)})
    teacher = config.teacher
    if teacher is not None:
        teacher = teacher.model_copy(update={"name": absolute(teacher.name)})
    lora = config.lora
    if lora is not None:
        others = {
            n: one.model_copy(update={"start": absolute(one.start)}) for n, one in lora.adapters.items()
        }
        lora = lora.model_copy(update={"start": absolute(lora.start), "adapters": others})
    tune = config.tune
    if tune is not None and tune.options.get("ranking"):
        tune = tune.model_copy(update={"ranking": absolute(tune.options["ranking"])})
    plugins = {
        key: section.model_copy(update={"name": absolute(section.name)})
        for key, section in (("method", config.method), ("optim", config.optim), ("tune", tune))
        if section is not None and is_own_file(section.name)
    }
    return config.model_copy(
        update={
            "data": data,
            "model": model,
            "reference": reference,
            "checkpoint": checkpoint,
            "lora": lora,
            "tune": tune,
            "teacher": teacher,
            **plugins,
        }
    )


def _unfinished(path: Path) -> bool:
    return RunFolder(path).status().state != "done"


def _changes(old: Config, new: Config) -> list[str]:
    """Differences that matter to the result: where it is kept does not."""
    old = with_absolute_paths(old).model_copy(update={"run": new.run})
    return config_diff(old, as_begun(new, old))
