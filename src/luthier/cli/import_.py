"""Turn a configuration of LLaMA-Factory, Axolotl or torchtune into one of Luthier."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from luthier.errors import ConfigError

File = Annotated[Path, typer.Argument(metavar="FILE", help="The other tool's YAML file.", show_default=False)]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="Where to write. Absent: to the standard output.")
]
Processes = Annotated[
    int, typer.Option(min=1, help="How many processes the run had there; they multiply the tokens of a step.")
]
Rows = Annotated[
    list[str] | None,
    typer.Option("--data", help="Train on this instead of the file's data sets. Can be repeated."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Fail if any key has no counterpart.")]
Force = Annotated[bool, typer.Option("--force", help="Write over a file that exists.")]
Everything = Annotated[bool, typer.Option("--all", help="List the keys that need nothing here, too.")]


def command(
    file: File,
    output: Output = None,
    processes: Processes = 1,
    data: Rows = None,
    strict: Strict = False,
    force: Force = False,
    everything: Everything = False,
) -> None:
    """Turn a configuration of LLaMA-Factory, Axolotl or torchtune into one of Luthier.

    Says of every key whether it is mapped, mapped with a note, not needed or without a counterpart, and why.
    What it writes passes `luthier check`, as far as the files that it names are there. Ends with 1 and the
    reason if the file describes a run that Luthier cannot do.

    Example: luthier import qlora.yml --output run.yaml
    """
    from rich.console import Console

    from luthier.migrate.report import counted, show
    from luthier.migrate.tools import Refused, import_file, lost
    from luthier.migrate.written import written

    if output is not None and output.exists() and not force:
        raise ConfigError(f"{output} exists; give another name, or --force to write over it")
    imported = import_file(file, processes=processes, rows=data or [])
    console = Console(stderr=True)
    show(imported, console, everything=everything)
    if strict and lost(imported):
        reasons = "; ".join(lost(imported))
        raise Refused(f"{file} ({imported.tool}): --strict, but not everything has a counterpart: {reasons}")
    if output is None:
        sys.stdout.write(written(imported))
    else:
        _write(output, written(imported))
        print(f"{output}: imported from {imported.tool}; {counted(imported)}")
    for fault in _open_ends(imported.values):
        console.print(f"still to do: {fault}", style="yellow", markup=False, highlight=False)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror or error}") from None


def _open_ends(values: dict[str, object]) -> list[str]:
    """Files that the configuration names and that are not here."""
    from luthier.config.load import config_from_dict
    from luthier.config.paths import path_faults
    from luthier.config.places import Place, Places

    faults = path_faults(config_from_dict(values), Places(Place("")))
    return [fault.removeprefix(": ") for fault in faults]
