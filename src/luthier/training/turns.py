"""Weights that take turns: before each step the blocks whose turn is over are closed, and those that follow opened.

Which blocks those are is a function of the seed and the step (`models/tuning/`), so a resumed run goes on alike. A
block that is closed keeps neither gradients nor optimizer states, and no master of 16-bit weights.
"""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from luthier.config.tree import Config
from luthier.data.batch import Batch
from luthier.models.tuning._parts import Weights
from luthier.models.tuning.base import Way
from luthier.optim.stepper import Stepper
from luthier.training.learner import BeforeStep
from luthier.training.tune import build_way

Block = list[nn.Parameter]


class Turns:
    """Opens and closes blocks of weights. To be called before each step.

    Args:
        way: whose turn it is.
        blocks: those that take turns; nothing else is opened or closed.
        always: weights that are tuned in every step.
        optimizer: over all of these.
        seed: for the draws.
    """

    def __init__(
        self, way: Way, blocks: Sequence[Block], always: Block, optimizer: Stepper, seed: int
    ) -> None:
        self.way, self.blocks, self.always, self.optimizer = way, list(blocks), always, optimizer
        self.seed, self.now = seed, frozenset[int]()
        self._began = False

    def __call__(self, step: int) -> None:
        """Makes sure that the right blocks are open; `step` is how many steps there were."""
        active = self.way.active(len(self.blocks), step, self.seed)
        if self._began and active == self.now:
            return
        for number, block in enumerate(self.blocks):
            for parameter in block:
                parameter.requires_grad_(number in active)
            if number not in active:
                self.optimizer.forget(block)
        self.now, self._began = active, True

    def before(self, then: BeforeStep) -> BeforeStep:
        """What comes before a step, with the turns first."""

        def turn(step: int, micro_batches: list[Batch]) -> list[Batch]:
            self(step)
            return then(step, micro_batches)

        return turn

    def most(self) -> Block:
        """The most weights that are open at a time."""
        sizes = sorted(self.blocks, key=lambda block: sum(p.numel() for p in block), reverse=True)
        number = len(self.way.active(len(self.blocks), 0, self.seed))
        return [*self.always, *(p for block in sizes[:number] for p in block)]


def build_turns(config: Config, model: PreTrainedModel, optimizer: Stepper) -> Turns | None:
    """The turns of the open weights of a model; None where all of them are tuned in every step."""
    way = build_way(config)
    if way is None or not way.takes_turns:
        return None
    weights = Weights(model)
    opened = frozenset(id(p) for p in model.parameters() if p.requires_grad)
    groups, rest = weights.layers, opened - frozenset().union(*weights.layers)
    always = rest
    if way.blocks_outside:
        always, tables = frozenset[int](), weights.embeddings | weights.head
        groups = [weights.embeddings, *groups, rest - tables, weights.head - weights.embeddings]
    blocks = [[p for _, p in weights.in_order(group & opened)] for group in groups]
    return Turns(
        way,
        [block for block in blocks if block],
        [p for _, p in weights.in_order(always)],
        optimizer,
        config.seed,
    )
