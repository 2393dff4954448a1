"""The forms that a run can be written in: one file a form, named as in `luthier export --to` (`-` is `_` there).

A file has a docstring, whose first sentence says what is written and for whom, and `write(job) -> Written`. A form of
which there are several types (`--to gguf:q8_0`) has `TYPE`: the usual one, or None where it must be given. Names and
sentences are read from the files without importing any, so that help starts without torch.
"""

import ast
import importlib
import re
from collections.abc import Callable
from pathlib import Path

from luthier.errors import ConfigError
from luthier.export.job import Job, Written

Write = Callable[[Job], Written]


def known_forms() -> dict[str, Path]:
    """The file of every form, by the name that `--to` takes."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return {file.stem.replace("_", "-"): file for file in files if not file.stem.startswith("_")}


def help_of_forms() -> str:
    """All forms with their first sentences."""
    return " ".join(f"{_shown(name, file)}: {_summary(file)}" for name, file in known_forms().items())


def chosen_form(to: str) -> tuple[Write, str | None]:
    """The function that writes this form, and its type if it has types.

    Raises ConfigError where there is no such form, or a type that is not asked for or must be.
    """
    name, colon, kind = to.partition(":")
    files = known_forms()
    known = ", ".join(_shown(one, file) for one, file in files.items())
    refused = f"--to is {to!r}, which is not a form that can be written. Known: {known}."
    if name not in files:
        raise ConfigError(refused)
    types = _types(files[name])
    if (colon and types is None) or (not colon and types == ""):
        raise ConfigError(refused)
    module = importlib.import_module(f"{__name__}.{files[name].stem}")
    return module.write, (kind.lower() if colon else types)


def _shown(name: str, file: Path) -> str:
    """The name, with its types if it has any."""
    types = _types(file)
    return name if types is None else f"{name}:TYPE" if types == "" else f"{name}[:TYPE]"


def _types(file: Path) -> str | None:
    """The usual type of a form; an empty text where it must be given, None where it has none."""
    for statement in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "TYPE":
            return ast.literal_eval(statement.value) or ""
    return None


def _summary(file: Path) -> str:
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0]
    return first[:1].lower() + first[1:]
