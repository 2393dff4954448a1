"""Measure speed and memory on this machine, next to what people use today."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer


def command(
    workload: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORKLOAD]...", help="A to G, generation. Without any: those with a goal."),
    ] = None,
    seconds: Annotated[float, typer.Option(help="Of training for each run of a contestant.", min=0.1)] = 60.0,
    repeats: Annotated[int, typer.Option(help="Runs of each contestant, interleaved.", min=1)] = 3,
    peers: Annotated[bool, typer.Option(help="Measure other tools, too (`make bench-peers`).")] = True,
    only: Annotated[
        list[str] | None, typer.Option(help="Take only this contestant; may be given again.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="The whole plan in small: does everything run?")
    ] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Where a step goes, and nothing else.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Name the workloads.")] = False,
) -> int:
    """Measure speed and memory on this machine.

    Example: luthier bench A --seconds 30 --no-peers
    """
    arguments = [*(workload or []), "--seconds", str(seconds), "--repeats", str(repeats), "--device", device]
    arguments += [part for name in only or [] for part in ("--only", name)]
    switches = {"--no-peers": not peers, "--dry-run": dry_run, "--profile": profile, "--list": list_}
    return _harness()([*arguments, *(name for name, wanted in switches.items() if wanted)])


def _harness() -> Callable[[Sequence[str]], int]:
    """The harness of the checkout that this package lies in. It is no part of the installed package: most of it is
    about other tools, and its history belongs to the repository."""
    from luthier.errors import ConfigError

    root = Path(__file__).resolve().parents[3]
    if not (root / "bench" / "__main__.py").exists():
        raise ConfigError(
            "luthier bench needs Luthier's repository, and this is an installed package. Clone the repository, "
            "run `make install` there, and `make bench-peers` to compare with other tools."
        )
    if str(root) not in sys.path:
        sys.path.append(str(root))
    from bench.__main__ import main  # pyright: ignore[reportMissingImports]

    return main
