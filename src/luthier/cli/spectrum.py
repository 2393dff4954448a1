"""Rank a model's matrices by signal and noise, for `tune: spectrum`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer


def command(
    name: Annotated[str, typer.Argument(metavar="MODEL", help="What `model:` takes in a config.")],
    out: Annotated[
        Path | None, typer.Option(help="Keep the ratios in this JSON file, for tune.ranking.")
    ] = None,
    share: Annotated[
        float, typer.Option(help="Show the layers of this share of each kind.", min=0, max=1)
    ] = 0.25,
    revision: Annotated[str | None, typer.Option(help="Commit, branch or tag of a hub id.")] = None,
    device: Annotated[str, typer.Option(help="Where to compute: auto, cpu or cuda.")] = "auto",
    offline: Annotated[bool, typer.Option("--offline", help="Refuse the network.")] = False,
) -> None:
    """Rank the matrices of each kind by their signal-to-noise ratio (Spectrum, arXiv:2406.06623).

    Example: luthier spectrum Qwen/Qwen3-0.6B --out ranking.json
    """
    from luthier.models.device import pick_device, pick_dtype
    from luthier.models.load import load_model, resolve_model
    from luthier.models.tuning._parts import Weights
    from luthier.models.tuning._signal import rank
    from luthier.models.tuning.spectrum import matrices_of

    def progress(done: int, total: int, matrix: str) -> None:
        print(
            f"\r{done} of {total} matrices ", end="\n" if done == total else "", file=sys.stderr, flush=True
        )

    where = pick_device(device)
    folder = resolve_model(name, revision=revision, offline=offline)
    model = load_model(folder, pick_dtype("auto", where), where)
    ratios = rank(matrices_of(Weights(model)), progress if sys.stderr.isatty() else lambda *_: None)
    for line in table(ratios, share):
        print(line)
    if out is not None:
        out.write_text(json.dumps({"model": name, "ratios": ratios}, indent=1) + "\n", encoding="utf-8")
        print(f"{len(ratios)} ratios are in {out}; use them with tune: {{name: spectrum, ranking: {out}}}")


def table(ratios: dict[str, float], share: float) -> list[str]:
    """For each kind of matrix the layers with the highest ratios, best first, with the best and the least ratio."""
    from luthier.models.lora_patterns import layer_of
    from luthier.models.tuning._signal import best, kind_of

    chosen, lines = best(ratios, share), []
    for kind in dict.fromkeys(map(kind_of, ratios)):
        of_kind = sorted((name for name in ratios if kind_of(name) == kind), key=lambda name: -ratios[name])
        layers = ", ".join(str(layer_of(name)) for name in of_kind if name in chosen)
        ends = f"{ratios[of_kind[0]]:.3g} to {ratios[of_kind[-1]]:.3g}"
        lines.append(f"{kind}: layers {layers} of {len(of_kind)} (ratios {ends})")
    return lines
