"""What every way to choose weights is: a choice, perhaps of blocks that take turns, perhaps after adding layers.

A way is one file with one `@settings` class, whose fields are its configuration. It must choose the same weights
again when a run is resumed: from the model as it was loaded, its settings, the seed and the step.
"""

from collections.abc import Callable
from typing import ClassVar

from transformers import PreTrainedModel

from luthier.models.tuning._parts import Chosen, Weights

Say = Callable[[str], None]


class Way:
    """The interface. Fields of a subclass are its settings."""

    takes_turns: ClassVar[bool] = False
    """Whether only some of the chosen blocks are tuned at a time."""

    blocks_outside: ClassVar[bool] = False
    """Of ways that take turns: whether what is chosen outside of decoder layers (embeddings, norms, head) takes turns,
    too. Otherwise it is tuned in every step."""

    def reshape(self, model: PreTrainedModel) -> str:
        """Changes the model's layers before anything else is done with it; returns what to say of it."""
        return ""

    def choose(self, weights: Weights, named: bool, say: Say) -> Chosen:
        """The weights that are tuned, in turns or all the time.

        Args:
            named: whether the config names weights of its own besides (`tune.train`).
            say: told what takes long.

        Raises:
            ConfigError: the settings do not fit the model.
        """
        raise NotImplementedError

    def active(self, number: int, step: int, seed: int) -> frozenset[int]:
        """Which of so many blocks have their turn in the step after `step` steps. A pure function."""
        raise NotImplementedError

    def describe(self) -> str:
        """What it is in a few words, for the line at a run's start."""
        return type(self).__name__
