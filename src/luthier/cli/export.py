"""Write what a run trained in the form that it is used in: merged into its base model, or a file for llama.cpp."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli._export_verify import prove, rows_for
from luthier.errors import ConfigError
from luthier.export.forms import chosen_form, help_of_forms

if TYPE_CHECKING:
    from luthier.config.tree import Config

BASES = ("trained", "original")


def command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)],
    to: Annotated[str, typer.Option(help=f"The form. {help_of_forms()}")] = "merged",
    out: Annotated[
        Path | None,
        typer.Option(help="Where to write. Absent: into the run's folder, under the form's name."),
    ] = None,
    base: Annotated[
        str,
        typer.Option(
            help="After training beside weights in few bits (quant): what is merged into. trained: the weights that "
            "these bits decode to, which is the model that was trained; original: the weights before."
        ),
    ] = "trained",
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Load what was written in the program that will run it, and compare it with what was trained.",
        ),
    ] = True,
    verify_prompts: Annotated[
        int, typer.Option(help="Prompts of the run's own rows that both are asked.", min=1)
    ] = 8,
) -> None:
    """Write what a run trained in the form that it is used in, and prove that it is the same model.

    Example: luthier export runs/tickets --to gguf:q8_0
    """
    from luthier.config.load import load_config
    from luthier.export.job import Job
    from luthier.runs.folder import RunFolder

    if base not in BASES:
        raise ConfigError(f"--base is {base!r}; known: {', '.join(BASES)}.")
    write, kind = chosen_form(to)
    folder = RunFolder.open(run)
    if not folder.model.is_dir() and not folder.adapter.is_dir():
        raise ConfigError(f"{run} has no adapter/ yet: it has not finished. Continue it with --resume.")
    config = load_config(folder.config)
    _refuse_adding_twice(config, base)
    job = Job(folder, config, _bar, out, kind, base, lambda folder: rows_for(config, folder))
    written = write(job)
    prove(job, written, verify_prompts if verify else 0)
    print(f"{written.what}: {written.path}")
    if config.qat is not None and config.qat.name != written.kind:
        print(
            f"This run was trained for {config.qat.name}, so {written.kind or '16 bit'} is not what it learned to bear."
        )
    if config.quant is not None and not job.whole:
        print(_which_base(config.quant.name, base))
    for note in written.notes:
        print(note)


def _refuse_adding_twice(config: "Config", base: str) -> None:
    if base == "original" and config.lora is not None and config.lora.init == "loftq":
        raise ConfigError(
            "--base is 'original', but an adapter that was started by loftq holds what the stored weights lost, "
            "and would add it to weights that have it. Use --base trained."
        )


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar in the terminal; called with how many are done, of how many, and the name of the last."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total, name: bar.update(task, completed=done, total=total, description=name)


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
