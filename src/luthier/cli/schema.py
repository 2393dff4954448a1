"""Print the JSON Schema of the configuration, for editors and forms."""

import json
from pathlib import Path
from typing import Annotated

import typer

import luthier.config.plugins
from luthier.config.schema import config_schema


def command(
    update_plugins: Annotated[
        bool,
        typer.Option(
            "--update-plugins",
            help="Write plugins.json anew from the files in methods/, optim/, kernels/quant/ and models/tuning/.",
        ),
    ] = False,
) -> None:
    """Prints the JSON Schema (draft 2020-12) of a run's YAML file, with all methods' and optimizers' options.

    Editors complete and check run.yaml with it: save it to a file and name it in the YAML's first line,
    as "# yaml-language-server: $schema=luthier.json".
    """
    if update_plugins:
        file = Path(luthier.config.plugins.__file__).with_name("plugins.json")
        file.write_text(plugins_text(), encoding="utf-8")
        print(f"{file} is up to date")
        return
    print(json.dumps(config_schema(), indent=2, ensure_ascii=False))


def plugins_text() -> str:
    """What plugins.json must hold, from the files themselves. Imports all of them, and so torch."""
    import importlib

    described = {
        section: luthier.config.plugins.describe(importlib.import_module(f"luthier.{package}"))
        for section, package in luthier.config.plugins.KINDS.items()
    }
    return json.dumps(described, indent=2, ensure_ascii=False, sort_keys=False) + "\n"
