"""Which run to continue, and whether it may be continued with this config."""

from pathlib import Path

from luthier.config.dump import config_diff, dump_config
from luthier.config.load import load_config
from luthier.config.tree import Config
from luthier.errors import ConfigError, LuthierError
from luthier.runs.atomic import atomic_write_text
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
    """Whether the config is the run's own. Refuses another one, with the differences, or notes it if allowed.

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
    if changes:
        named = config.model_copy(update={"run": config.run.model_copy(update={"name": folder.name})})
        atomic_write_text(folder.config, dump_config(named))
    return not changes


def _unfinished(path: Path) -> bool:
    return RunFolder(path).status().state != "done"


def _changes(old: Config, new: Config) -> list[str]:
    """Differences that matter to the result: where it is kept does not."""
    return config_diff(old.model_copy(update={"run": new.run}), new)
