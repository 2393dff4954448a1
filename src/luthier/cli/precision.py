"""Measure which layers lose most in few bits on your own rows, and which to leave in 16 bits."""

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.errors import ConfigError

if TYPE_CHECKING:
    from luthier.training.precision import Found

SHOWN = 12


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN.YAML|KEY=VALUE", help="A config file, settings, or both.", show_default=False
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="Memory for the linear layers: bytes a weight (0.7), or with a unit (3.5GB). Absent: a tenth more "
            "than all of them take when they are stored."
        ),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens of your rows to measure with.", min=1)] = 4096,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure which layers lose most when they are stored in few bits, and print what to put into the config.

    Example: luthier precision run.yaml --budget 0.7
    """
    from luthier.config.load import load_config
    from luthier.config.overrides import split_arguments
    from luthier.training.precision import find_precision

    def progress(done: int, total: int) -> None:
        print(
            f"\rmeasured {done} of {total} layers",
            end="\n" if done == total else "",
            file=sys.stderr,
            flush=True,
        )

    if not arguments:
        raise ConfigError("there is nothing to measure; name a file, as in: luthier precision run.yaml")
    file, overrides = split_arguments(arguments)
    config = load_config(file, overrides)
    with tempfile.TemporaryDirectory(prefix="luthier-") as scratch:
        found = find_precision(
            config,
            budget,
            tokens,
            Path(scratch),
            progress if sys.stderr.isatty() else lambda done, total: None,
        )
    if as_json:
        import json

        layers = {one.name: {"divergence": one.divergence, "bytes": one.cost} for one in found.damages}
        losses = {"plain": found.plain_loss, "stored": found.stored_loss, "chosen": found.chosen_loss}
        print(json.dumps({"skip": found.left, "taken": found.taken, "loss": losses, "layers": layers}))
        return
    _print(found, config.quant.name if config.quant else "")


def _print(found: "Found", scheme: str) -> None:
    """The worst layers, what is proposed, and what it does to the loss."""
    worst = sorted(found.damages, key=lambda one: one.divergence, reverse=True)
    most = worst[0].divergence if worst else 0.0
    print(f"{'divergence':>10}  {'16 bits cost':>12}  layer")
    for one in worst[:SHOWN]:
        bar = "█" * round(20 * one.divergence / most) if most else ""
        mark = "  left in 16 bits" if one.name in found.left else ""
        print(f"{one.divergence:10.5f}  {one.cost / 2**20:8.1f} MiB  {one.name}  {bar}{mark}")
    if len(worst) > SHOWN:
        rest = sum(one.divergence for one in worst[SHOWN:])
        print(f"{rest:10.5f}  {'':>12}  the other {len(worst) - SHOWN} together")
    weights = sum(one.num_weights for one in found.damages)
    print(
        f"\n{len(found.left)} of {len(found.damages)} layers left in 16 bits; all linear layers take "
        f"{found.taken / 2**20:,.1f} MiB, {found.taken / weights:.3f} bytes a weight"
    )
    rows = "held-out rows" if found.held_out else "the measured rows (no held-out ones: give data.eval_rows)"
    print(
        f"loss on {rows}: {found.plain_loss:.4f} as it is, {found.stored_loss:.4f} with all stored, "
        f"{found.chosen_loss:.4f} with these left"
    )
    if found.left:
        print(f"\nquant:\n  name: {scheme}\n  skip:")
        for name in found.left:
            print(f"    - {name}")
