"""Several adapters of one base model become one."""

from pathlib import Path
from typing import Annotated

import typer

from luthier.errors import ConfigError


def command(
    adapters: Annotated[
        list[Path],
        typer.Argument(metavar="ADAPTER...", help="Folders of adapters, or of runs.", show_default=False),
    ],
    out: Annotated[Path, typer.Option(help="Where to write the adapter.", show_default=False)],
    weights: Annotated[
        str | None, typer.Option(help="A weight for each, such as 0.7,0.3. Absent: 1 for each.")
    ] = None,
    by: Annotated[str, typer.Option(help="linear, ties, dare or dare_ties.")] = "linear",
    density: Annotated[float, typer.Option(help="Share of each update that ties and dare keep.")] = 0.5,
    rank: Annotated[int | None, typer.Option(help="Rank of the result. Absent: the sum of theirs.")] = None,
    seed: Annotated[int, typer.Option(help="Of what dare drops.")] = 0,
) -> None:
    """Make one adapter of several that were trained on the same base model.

    Example: luthier combine runs/tickets runs/tone --out both --weights 0.6,0.4
    """
    from luthier.export.combine import known_ways
    from luthier.export.combine_adapters import combine_adapters

    if by not in (known := known_ways()):
        raise ConfigError(f"--by is {by!r}. Known: {', '.join(known)}.")
    if not 0 < density <= 1:
        raise ConfigError(f"--density is {density:g}; it is a share above 0 and at most 1.")
    if rank is not None and rank < 1:
        raise ConfigError(f"--rank is {rank}; give 1 or more, or leave it out.")
    folders = [path / "adapter" if (path / "adapter").is_dir() else path for path in adapters]
    made = combine_adapters(
        folders, _weights(weights, len(folders)), out, by=by, density=density, rank=rank, seed=seed
    )
    lost = f"; {made.lost:.1%} of it did not fit into that rank" if made.lost > 0.001 else ""
    print(f"adapter of rank {made.rank} on {made.modules} modules: {out}{lost}")


def _weights(given: str | None, number: int) -> list[float]:
    if given is None:
        return [1.0] * number
    try:
        weights = [float(part) for part in given.split(",")]
    except ValueError:
        raise ConfigError(
            f"--weights is {given!r}; give numbers with commas between, such as 0.7,0.3."
        ) from None
    if len(weights) != number:
        raise ConfigError(
            f"--weights has {len(weights)} numbers, but there are {number} adapters; give one for each."
        )
    return weights
