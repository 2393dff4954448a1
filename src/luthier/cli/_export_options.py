"""The options of `luthier export`."""

from pathlib import Path
from typing import Annotated

import typer

from luthier.export.forms import help_of_forms

Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.", show_default=False)]
To = Annotated[str, typer.Option(help=f"The form. {help_of_forms()}")]
Out = Annotated[
    Path | None,
    typer.Option(help="Where to write. Absent: into the run's folder, under the form's name."),
]
Base = Annotated[
    str,
    typer.Option(
        help="After training beside weights in few bits (quant): what is merged into. trained: the weights that "
        "these bits decode to, which is the model that was trained; original: the weights before."
    ),
]
Verify = Annotated[
    bool,
    typer.Option(
        "--verify/--no-verify",
        help="Load what was written in the program that will run it, and compare it with what was trained.",
    ),
]
VerifyPrompts = Annotated[int, typer.Option(help="Prompts of the run's own rows that both are asked.", min=1)]
Kind = Annotated[
    str | None,
    typer.Option(
        "--type", help="The type of the weights, where the form has several: as after the colon of --to."
    ),
]
AdapterOnly = Annotated[
    bool,
    typer.Option(
        "--adapter-only", help="vllm, sglang: the adapter beside its base model instead of merged into it."
    ),
]
Push = Annotated[
    str | None,
    typer.Option(
        metavar="OWNER/NAME",
        help="Upload what was written to this repository on the hub, private if it is new.",
    ),
]
Public = Annotated[bool, typer.Option("--public", help="With --push: a new repository is for everybody.")]
