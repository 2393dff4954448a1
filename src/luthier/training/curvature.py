"""The pass of its own that optimizers need which divide by the curvature (Sophia, arXiv:2305.14342, algorithm 2).

The rows of the step go through the model once more, with targets that are drawn from what it predicts. The gradient of
their mean loss, squared and times the number of predictions, is on average the diagonal of the Gauss-Newton matrix.
What is drawn depends on seed, step, rank and micro-batch, so a resumed run draws the same.
"""

from collections.abc import Sequence

import numpy as np
import torch

from luthier.config.tree import Config
from luthier.data.batch import Batch
from luthier.errors import ConfigError
from luthier.models.activations.assemble import tokens_in_flight
from luthier.models.head_policy import HeadPolicy
from luthier.optim.stepper import Stepper
from luthier.training.loop import Trainer


class Curvature:
    """Tells the optimizer of a trainer the curvature, every so many steps.

    Args:
        every: steps between two estimates; the first step has one.
        seed: of what is drawn.

    Takes the place of `Learner.before_step`, and calls what was there first.
    """

    def __init__(self, trainer: Trainer, optimizer: Stepper, every: int, seed: int):
        self.trainer, self.optimizer, self.every, self.seed = trainer, optimizer, every, seed
        self.before = trainer.learner.before_step

    def __call__(self, step: int, micro_batches: list[Batch]) -> list[Batch]:
        """What the step learns from, after the estimate if one is due. `step` counts those before this one."""
        micro_batches = self.before(step, micro_batches)
        if step % self.every == 0:
            self._estimate(step, micro_batches)
        return micro_batches

    def _estimate(self, step: int, micro_batches: Sequence[Batch]) -> None:
        trainer = self.trainer
        learner, gradients = trainer.learner, trainer.gradients
        count = trainer.cluster.sum([float(sum((b.weight_N > 0).sum() for b in micro_batches))])[0]
        for number, batch in enumerate(micro_batches):
            batch = batch.to(trainer.device)
            entropy = [self.seed, 11, step, trainer.cluster.rank, number]
            draw = torch.Generator(trainer.device)
            draw.manual_seed(int(np.random.default_rng(entropy).integers(2**62)))
            with learner.activations.micro_batch(tokens_in_flight(trainer.policy, batch)):
                coefficient_N = -(batch.weight_N > 0).to(torch.float32) / count
                trainer.policy.sampled_loss(batch, coefficient_N, draw).backward()
        gradients.collect(trainer.cluster.sum)
        trainer.cluster.sum_in_place(gradients.tensors())
        self.optimizer.curve(count)
        gradients.clear()


def build_curvature(config: Config, trainer: Trainer) -> Curvature | None:
    """The estimates that the trainer's optimizer needs; None if it needs none.

    Raises:
        ConfigError: the model makes no predictions that targets could be drawn from.
    """
    optimizer = trainer.optimizer
    every = optimizer.curvature_every if isinstance(optimizer, Stepper) else 0
    if not every:
        return None
    if isinstance(trainer.policy, HeadPolicy):
        raise ConfigError(
            f"optim.name: {config.optim.name} estimates the curvature from tokens that the model draws, and method "
            f"{config.method.name} trains a head that writes none. Set optim.name: adamw"
        )
    if config.train.optimizer_in_backward:
        raise ConfigError(
            f"optim.name: {config.optim.name} looks at all gradients of a pass, and train.optimizer_in_backward uses "
            "each up at once. Leave out one of them"
        )
    if trainer.policy.noise is not None or trainer.policy.routers is not None:
        raise ConfigError(
            f"optim.name: {config.optim.name} needs a second pass over the rows, which noise on embeddings and losses "
            "of routers do not allow for. Leave out train.neftune_noise_alpha, set model.router_aux_weight: 0, or set "
            "optim.name: adamw"
        )
    assert isinstance(optimizer, Stepper), "no other has a curvature"
    return Curvature(trainer, optimizer, every, config.seed)
