"""LISA: embeddings, head and a few decoder layers drawn at random, others every so many steps (arXiv:2403.17919)."""

from typing import ClassVar

import numpy as np

from luthier.config.section import Positive
from luthier.config.settings import settings
from luthier.models.tuning._parts import Chosen, Weights
from luthier.models.tuning.base import Say, Way


@settings
class Lisa(Way):
    """A few layers at a time, drawn evenly; what lies outside of layers is tuned in every step."""

    takes_turns: ClassVar = True

    active_layers: Positive = 2
    """How many layers are tuned at a time."""

    every: Positive = 20
    """Steps until others are drawn."""

    def choose(self, weights: Weights, named: bool, say: Say) -> Chosen:
        """All weights, in turns."""
        return weights.everything

    def active(self, number: int, step: int, seed: int) -> frozenset[int]:
        """Drawn without replacement, from the seed and the number of the draw alone."""
        draw = np.random.default_rng([seed, 7, step // self.every])
        return frozenset(map(int, draw.permutation(number)[: self.active_layers]))

    def describe(self) -> str:
        return f"LISA, {self.active_layers} layers at a time, others every {self.every} steps"
