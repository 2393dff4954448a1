"""All runs under a folder at a glance, and what two of them have in common and not.

A run that is damaged is listed as `broken` with the reason; one whose process is gone although it never said
how it ended is `died`. Neither keeps the others from being listed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml

from luthier.errors import ConfigError, LuthierError, RunError
from luthier.runs.folder import RunFolder
from luthier.runs.metrics import last_value, read_metrics, series
from luthier.runs.status import RunStatus

RunState = Literal["running", "done", "failed", "interrupted", "died", "broken"]

_TRACES = ("config.yaml", "status.json", "metrics.jsonl", "audit.jsonl")


@dataclass(frozen=True)
class RunSummary:
    """One run in a line. None stands for what the run has not got (yet)."""

    name: str
    path: Path
    state: RunState
    message: str = ""
    """Why it is broken, failed or was interrupted."""
    method: str | None = None
    model: str | None = None
    step: int = 0
    num_steps: int | None = None
    loss: float | None = None
    """Training loss of the last step."""
    best_eval_loss: float | None = None
    tokens_per_second: float | None = None
    """Median over the steps."""
    started: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Difference:
    """One line of a comparison: a key of the config, or a result, and its value in each run."""

    section: Literal["config", "results"]
    key: str
    values: tuple[Any, ...]


def list_runs(root: Path | str) -> list[RunSummary]:
    """Every run under `root`, the newest first. Folders that hold no file of a run are passed over.

    Raises ConfigError where `root` is a file; an absent folder has no runs.
    """
    root = Path(root)
    if root.exists() and not root.is_dir():
        raise ConfigError(
            f"{root} is a file, not a folder of runs. Give --root the folder that `run.root` names."
        )
    if not root.is_dir():
        return []
    folders = [path for path in root.iterdir() if not path.name.startswith(".") and _has_traces(path)]
    return sorted((summarize(path) for path in folders), key=lambda run: (-(run.started or 0.0), run.name))


def summarize(path: Path) -> RunSummary:
    """One run in a line; `broken`, with the reason, where its files cannot be read."""
    folder = RunFolder(path)
    try:
        config = read_config(folder)
        status = folder.status()
        rows = read_metrics(folder.metrics)
    except (LuthierError, OSError) as error:
        return RunSummary(folder.name, path, "broken", str(error))
    evals = [value for _, value in series(rows, "eval", "loss") if value is not None]
    speeds = sorted(value for _, value in series(rows, "train", "tokens_per_second") if value is not None)
    return RunSummary(
        name=folder.name,
        path=path,
        state=_state(status),
        message=status.message,
        method=_named(config.get("method", "sft")),
        model=_named(config.get("model")),
        step=max([status.step, *(step for step, _ in series(rows, "train", "loss"))]),
        num_steps=status.num_steps,
        loss=last_value(rows, "train", "loss"),
        best_eval_loss=min(evals, default=None),
        tokens_per_second=speeds[len(speeds) // 2] if speeds else None,
        started=status.started,
        seconds=status.seconds(),
    )


def find_run(root: Path | str, name: str) -> RunFolder:
    """The run called `name` under `root`, or the one at the path `name`.

    Raises ConfigError with the nearest name where there is none.
    """
    root = Path(root)
    for path in (root / name, Path(name)):
        if name and path.is_dir() and _has_traces(path):
            return RunFolder.open(path)
    names = [run.name for run in list_runs(root)]
    near = get_close_matches(name, names, n=1, cutoff=0.4)
    if near:
        advice = f"Did you mean {near[0]}?"
    elif names:
        advice = f"There are: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}."
    else:
        advice = "There are no runs; --root says where to look."
    raise ConfigError(f"There is no run {name!r} in {root}. {advice}")


def read_config(folder: RunFolder) -> dict[str, Any]:
    """The config of a run as plain values. Raises RunError where it is missing or is not a config."""
    try:
        config = yaml.safe_load(folder.config.read_text())
    except FileNotFoundError:
        raise RunError(f"{folder.config} is missing") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RunError(f"{folder.config} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise RunError(f"{folder.config} does not hold a config but {type(config).__name__}")
    return config


def compare(folders: Sequence[RunFolder]) -> list[Difference]:
    """What differs between the configs of some runs, then their results. A key that a run lacks is None.

    Raises RunError where one of them is broken.
    """
    configs = [_flat(read_config(folder)) for folder in folders]
    keys = list(dict.fromkeys(key for config in configs for key in config if not key.startswith("run.")))
    rows = [Difference("config", key, tuple(config.get(key) for config in configs)) for key in keys]
    differing = [row for row in rows if any(value != row.values[0] for value in row.values)]
    results = [_results(folder) for folder in folders]
    names = list(dict.fromkeys(name for result in results for name in result))
    return differing + [
        Difference("results", name, tuple(result.get(name) for result in results)) for name in names
    ]


def task_metrics(rows: list[dict[str, Any]], when: str) -> dict[str, float]:
    """Task metrics of the newest evaluation `before` or `after` training, such as `exact_match`."""
    for row in reversed(rows):
        if row.get("kind") == "evaluation" and row.get("when") == when:
            return {
                name: float(value)
                for name, value in row.items()
                if isinstance(value, int | float)
                and not isinstance(value, bool)
                and name not in ("step", "time")
            }
    return {}


def _results(folder: RunFolder) -> dict[str, Any]:
    summary = summarize(folder.path)
    if summary.state == "broken":
        raise RunError(summary.message)
    rows = read_metrics(folder.metrics)
    results: dict[str, Any] = {
        "state": summary.state,
        "steps": summary.step,
        "loss": summary.loss,
        "best eval loss": summary.best_eval_loss,
        "tokens/s": summary.tokens_per_second,
        "seconds": summary.seconds,
    }
    for when in ("before", "after"):
        results |= {f"{name} {when}": value for name, value in task_metrics(rows, when).items()}
    return results


def _state(status: RunStatus) -> RunState:
    return "died" if status.state == "running" and status.is_alive() is False else status.state


def _has_traces(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in _TRACES)


def _named(section: Any) -> str | None:
    """The name in `section: NAME` or `section: {name: NAME}`."""
    name = section.get("name") if isinstance(section, dict) else section
    return None if name is None else str(name)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested sections as one level of dotted keys; an empty section and a list count as values."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for name, inner in value.items():
        flat |= _flat(inner, f"{prefix}.{name}" if prefix else str(name))
    return flat
