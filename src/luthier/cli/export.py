"""Write what a run trained in the form that it is used in: merged into its base model."""

from pathlib import Path
from typing import Annotated

import typer

from luthier.config.tree import Config
from luthier.errors import ConfigError

FORMS = ("merged",)
BASES = ("trained", "original")


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    to: Annotated[str, typer.Option(help=f"The form: {', '.join(FORMS)}.")] = "merged",
    out: Annotated[
        Path | None, typer.Option(help="Where to write. Absent: a folder of that name in the run's.")
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            help="After training beside weights in few bits (quant): what is merged into. trained: the weights that "
            "these bits decode to, which is the model that was trained; original: the weights before."
        ),
    ] = "trained",
) -> None:
    """Write what a run trained in the form that it is used in.

    Example: luthier export runs/tickets --to merged
    """
    from luthier.config.load import load_config
    from luthier.runs.folder import RunFolder

    if to not in FORMS:
        raise ConfigError(
            f"--to is {to!r}, which is not a form that can be written. Known: {', '.join(FORMS)}."
        )
    if base not in BASES:
        raise ConfigError(f"--base is {base!r}; known: {', '.join(BASES)}.")
    folder = RunFolder.open(run)
    if folder.model.is_dir():
        raise ConfigError(
            f"{run} tuned all weights, so there is no adapter to merge: its model is {folder.model}."
        )
    if not folder.adapter.is_dir():
        raise ConfigError(f"{run} has no adapter/ yet: it has not finished. Continue it with --resume.")
    target = out if out is not None else folder.path / to
    config = load_config(folder.config)
    _merge(config, folder.adapter, target, base)
    print(f"merged model: {target}")
    if config.quant is not None:
        print(_which_base(config.quant.name, base))


def _which_base(scheme: str, base: str) -> str:
    """What a merged model is, whose adapter was trained beside weights in few bits."""
    if base == "trained":
        return (
            f"Its weights are those that {scheme} decodes to, plus the adapter: the model that was trained and "
            "evaluated. For the weights before they were stored: --base original"
        )
    return (
        f"Its weights are those from before they were stored in {scheme}, plus the adapter, which was trained beside "
        "the stored ones: evaluate it before use. For the model that was trained: --base trained"
    )


def _merge(config: Config, adapter: Path, target: Path, chosen_base: str) -> None:
    from rich.console import Console
    from rich.progress import Progress

    from luthier.export.heads import has_other_head, merge_head_to_folder
    from luthier.export.merge import merge_to_folder
    from luthier.models.load import resolve_model
    from luthier.models.quantised.chosen import chosen

    quantisation = chosen(config) if chosen_base == "trained" else None
    base = resolve_model(config.model.name, revision=config.model.revision, offline=config.offline)
    if has_other_head(adapter):
        merge_head_to_folder(base, adapter, target, quantisation=quantisation)
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("merging", total=None)
        merge_to_folder(
            base,
            adapter,
            target,
            progress=lambda done, total, shard: bar.update(
                task, completed=done, total=total, description=shard
            ),
            quantisation=quantisation,
        )
