"""Fine-tune a model as a config says; any method, new or resumed."""

import sys
from typing import Annotated

import typer


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN.YAML] [KEY=VALUE]...",
            help="A config file or the folder of a run, and keys to change.",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue from the run's last checkpoint.")
    ] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="Resume although the config was changed.")
    ] = False,
    gpus: Annotated[int | None, typer.Option(help="Train on this many GPUs of this machine.", min=1)] = None,
) -> None:
    """Fine-tune a model as a config says.

    Example: luthier train run.yaml optim.lr=1e-4
    """
    from luthier.config.load import load_config
    from luthier.config.overrides import split_arguments
    from luthier.parallel.launch import is_worker, relaunch

    path, overrides = split_arguments(arguments or [])
    if path is not None and path.is_dir():
        config = load_config(path / "config.yaml", overrides)
        where = {"root": str(path.resolve().parent), "name": path.resolve().name}
        config = config.model_copy(update={"run": config.run.model_copy(update=where)})
    else:
        config = load_config(path, overrides)
    if gpus and gpus > 1 and not is_worker():
        relaunch(gpus, sys.argv[1:])

    from luthier.training.run import run

    result = run(config, resume=resume, allow_changes=allow_changes, say=_say)
    for line in summary(result.before, result.after):
        _say(line)
    if result.eval_loss is not None:
        _say(f"evaluation loss: {result.eval_loss:.4f}")
    _say(f"trained: {result.trained}")
    _say(f"report:  {result.report}")
    _say(f"try it:  luthier chat {result.folder}")


def summary(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """One line a metric over all rows, before and after."""
    lines = []
    for name, value in after.items():
        if "/" not in name:
            earlier = f"{before[name]:.3f} -> " if name in before else ""
            lines.append(f"{name.replace('_', ' ')}: {earlier}{value:.3f}")
    return lines


def _say(text: str) -> None:
    print(text, flush=True)
