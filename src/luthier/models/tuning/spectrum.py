"""Spectrum: of each kind of matrix the layers with the most signal beside their noise (arXiv:2406.06623)."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor

from luthier.config.settings import settings
from luthier.errors import ConfigError
from luthier.models.tuning._parts import Chosen, Weights
from luthier.models.tuning._signal import best, rank, read_ranking
from luthier.models.tuning.base import Say, Way

SECONDS_BETWEEN_REPORTS = 10.0


@settings
class Spectrum(Way):
    """A share of the matrices of each kind, by their signal-to-noise ratio."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.25
    """How many of the matrices of each kind (`q_proj`, `down_proj` ...) are tuned."""

    ranking: str | None = None
    """A file of `luthier spectrum MODEL --out FILE`. Absent: the ratios are computed at the start, and kept."""

    def choose(self, weights: Weights, named: bool, say: Say) -> Chosen:
        """The matrices of decoder layers with the highest ratios of their kind."""
        matrices = matrices_of(weights)
        if self.ranking is not None:
            ratios = self._read(matrices)
        elif any(
            matrix.is_meta for matrix in matrices.values()
        ):  # a forecast: as many, whichever they will be
            ratios = dict.fromkeys(matrices, 0.0)
        else:
            ratios = rank(matrices, _Reports(say))
        chosen = best(ratios, self.share)
        say(f"Spectrum: {len(chosen)} of {len(matrices)} matrices of decoder layers")
        return frozenset(weights.names[name] for name in chosen)

    def _read(self, matrices: Mapping[str, Tensor]) -> dict[str, float]:
        ratios = read_ranking(Path(self.ranking or ""))
        if missing := sorted(matrices.keys() - ratios.keys()):
            raise ConfigError(
                f"tune.ranking is {self.ranking}, which lacks {missing[0]} and {len(missing) - 1} other weights of "
                "this model, so it was made for another one. Make one for this model, or leave it out"
            )
        return {name: ratios[name] for name in matrices}

    def describe(self) -> str:
        return f"Spectrum, {self.share:.0%} of the matrices of each kind"


def matrices_of(weights: Weights) -> dict[str, Tensor]:
    """The matrices of decoder layers, and stacks of matrices, by name."""
    inside = frozenset().union(*weights.layers)
    return {name: p for name, p in weights.in_order(inside) if p.dim() > 1}


class _Reports:
    """Tells now and then how far it is."""

    def __init__(self, say: Say):
        self.say, self._last = say, time.monotonic()

    def __call__(self, done: int, total: int, name: str) -> None:
        if time.monotonic() - self._last > SECONDS_BETWEEN_REPORTS:
            self._last = time.monotonic()
            self.say(f"signal-to-noise ratios: {done} of {total} matrices")
