"""BAdam: one block at a time with an optimizer of its own, the next one every so many steps (arXiv:2404.02827)."""

from typing import ClassVar, Literal

import numpy as np

from luthier.config.section import Positive
from luthier.config.settings import settings
from luthier.models.tuning._parts import Chosen, Weights
from luthier.models.tuning.base import Say, Way


@settings
class BAdam(Way):
    """One decoder layer after another; of embeddings, norms and head only what is asked for, each a block, too."""

    takes_turns: ClassVar = True
    blocks_outside: ClassVar = True

    every: Positive = 50
    """Steps until the next block; the optimizer's states of the last one are dropped then."""

    order: Literal["random", "ascending", "descending"] = "random"
    """In which order blocks have their turn. random: each once, in an order drawn anew after each round."""

    def choose(self, weights: Weights, named: bool, say: Say) -> Chosen:
        """The decoder layers, in turns."""
        return frozenset().union(*weights.layers)

    def active(self, number: int, step: int, seed: int) -> frozenset[int]:
        """The one block whose turn it is."""
        turn = step // self.every
        place = turn % number
        if self.order == "descending":
            place = number - 1 - place
        if self.order == "random":
            place = int(np.random.default_rng([seed, 8, turn // number]).permutation(number)[place])
        return frozenset([place])

    def describe(self) -> str:
        return f"BAdam, one block at a time, the next every {self.every} steps ({self.order})"
