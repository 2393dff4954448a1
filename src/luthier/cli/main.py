"""The command `luthier`. Each other file in this folder is one command: the file name is its name.

A command file has a docstring, whose first sentence is its line in `luthier --help`, and either a function
`command` (its signature is the command line, its docstring the help) or, for a group, a typer app `app`.
Only the file of the command that runs is imported, and the list is read from the files without importing any,
so that help is there at once. A name that Python reserves ends in an underscore: `import_.py` is `import`.
"""

import ast
import os
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from luthier.errors import ConfigError, LuthierError
from luthier.threads import wait_without_spinning

ORDER = (
    *("train", "check", "plan", "data", "chat", "serve", "evaluate", "export", "import", "runs", "models"),
    *("precision", "spectrum", "studio", "doctor", "bench", "schema"),
)
"""The order of commands in the help; any others follow by name."""

_SETTING = re.compile(r"--?([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)(=.*)?", re.DOTALL)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line and returns its exit status: 0 done, 1 failed, 2 wrong input, 130 interrupted."""
    wait_without_spinning()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _dispatch(given)
        sys.stdout.flush()
        return status
    except LuthierError as error:
        return _report(error)
    except KeyboardInterrupt:
        print("interrupted; what was saved before is whole", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _silence_stdout()
        return 1
    except Exception:
        import traceback

        traceback.print_exc()
        print("This is a bug in Luthier; please report it with the lines above.", file=sys.stderr)
        return 1


def commands(folder: Path | None = None) -> dict[str, Path]:
    """The file of every command, in the order of the help."""
    files = (folder or Path(__file__).parent).glob("*.py")
    found = {
        p.stem.rstrip("_").replace("_", "-"): p
        for p in files
        if p.stem != "main" and not p.stem.startswith("_")
    }
    ranks = {name: rank for rank, name in enumerate(ORDER)}
    return {name: found[name] for name in sorted(found, key=lambda name: (ranks.get(name, len(ORDER)), name))}


def summary(file: Path) -> str:
    """The first sentence of a file's docstring, read without importing it."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    first = re.split(r"(?<=\.)\s", " ".join(text.split()), maxsplit=1)[0].rstrip(".")
    first = re.sub(r"^`luthier [\w-]+`: ", "", first)
    return first[:1].upper() + first[1:]


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(_help())
        return 0
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"luthier {version('luthier')}")
        return 0
    known = commands()
    name = arguments[0]
    if name not in known:
        near = get_close_matches(name, known, n=1)
        meant = f"did you mean luthier {near[0]}?" if near else "luthier --help lists them"
        raise ConfigError(f'there is no command "{name}"; {meant}')
    return _run(name, known[name], arguments[1:])


def _help() -> str:
    known = commands()
    width = max(map(len, known), default=0)
    lines = [f"  {name:<{width}}  {summary(file)}" for name, file in known.items()]
    return "\n".join(
        [
            "Usage: luthier COMMAND [ARGUMENTS]",
            "",
            "Fine-tunes open language models, from raw data to a verified model.",
            "",
            "Commands:",
            *lines,
            "",
            "Options:",
            "  --version  Print the version",
            "  --help     Print this help; luthier COMMAND --help tells about one command",
        ]
    )


def _run(name: str, file: Path, arguments: list[str]) -> int:
    """Imports one command and hands it its arguments."""
    import importlib

    import typer
    import typer.main

    module = importlib.import_module(f"luthier.cli.{file.stem}")
    app = getattr(module, "app", None)
    if app is None:
        app = typer.Typer(add_completion=False, rich_markup_mode=None, context_settings=_HELP_NAMES)
        app.command(name)(module.command)
    runnable: Any = typer.main.get_command(app)
    usage_error: Any = typer.BadParameter.__base__  # typer moved this class between releases, not its family
    try:
        result = runnable.main(arguments, prog_name=f"luthier {name}", standalone_mode=False)
    except typer.Abort:
        return 130
    except usage_error as error:
        message: str = error.format_message()
        if not message:  # a group without a command has printed its help
            return 2
        raise ConfigError(f"{message.rstrip('.')} ({_usage_hint(name, arguments)})") from None
    return result if isinstance(result, int) else 0


_HELP_NAMES = {"help_option_names": ["-h", "--help"]}


def _usage_hint(name: str, arguments: list[str]) -> str:
    """How to write a setting that was given as `--key value`, as in other tools; or where the help is."""
    from luthier.config.faults import all_keys

    keys = all_keys()
    for position, argument in enumerate(arguments):
        match = _SETTING.fullmatch(argument)
        if match is None:
            continue
        key, value = match.groups()
        meant = [known for known in keys if known == key or known.rpartition(".")[2] == key]
        if "." not in key and len(meant) != 1:
            continue
        after = arguments[position + 1] if position + 1 < len(arguments) else "..."
        return f"settings have no dashes: write {meant[0] if meant else key}{value or f'={after}'}"
    return f"luthier {name} --help tells more"


def _report(error: LuthierError) -> int:
    """Prints one line for each fault, and returns the exit status that belongs to the error."""
    label = "\033[31merror:\033[0m" if sys.stderr.isatty() and "NO_COLOR" not in os.environ else "error:"
    faults = error.faults if isinstance(error, ConfigError) else [str(error)]
    for fault in faults:
        print(label, fault, file=sys.stderr)
    return error.exit_code


def _silence_stdout() -> None:
    """Lets the interpreter end quietly after the reader of a pipe has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
