"""Runs that train an adapter of the library `peft`: how it is put on, and what it wants to be told of each step."""

from dataclasses import replace

import torch
from transformers import PreTrainedModel

from luthier.config.tree import Config
from luthier.errors import ConfigError
from luthier.models.fused.check import probed
from luthier.models.peft_adapters.attach import apply_peft
from luthier.models.peft_adapters.held import PeftAdapter, hold, noticeable_peft, peft_of
from luthier.models.peft_adapters.ranks import move_ranks, moves_ranks, orthogonality, settle_steps
from luthier.models.policy import Policy
from luthier.models.value_head import Head
from luthier.training.loop import Trainer


def adapt_by_peft(config: Config, model: PreTrainedModel, head: Head | None) -> list[str]:
    """Puts the adapter of the section `peft` on the model; says which. Nothing to do without that section.

    Raises:
        ConfigError: its settings cannot work, alone or with this run's method.
    """
    section = config.peft
    if section is None:
        return []
    if head is not None:
        raise ConfigError(
            f"method {config.method.name} trains a head of its own besides, which adapters of peft are not saved with "
            "here; use the section lora instead of peft"
        )
    apply_peft(model, section.type, section.options, seed=config.seed)
    number = sum(p.numel() for p in model.parameters() if p.requires_grad)
    given = ", ".join(f"{key} {value}" for key, value in section.options.items())
    return [f"{section.type} of peft{f' ({given})' if given else ''}: {number:,} weights"]


def settle_peft(policy: Policy) -> None:
    """Finds out whether the adapter draws random numbers in training; refuses a layout that it has no place in.

    Raises:
        ConfigError: with what else could be used.
    """
    adapter = peft_of(policy.model)
    if adapter is None:
        return
    hold(policy.model, replace(adapter, random=_draws(policy)))
    if adapter.prompt is not None and adapter.prompt.gives_states and policy.layout != "packed":
        raise ConfigError(
            f"peft.type is {adapter.kind}, which puts keys and values before every document, and documents do not go "
            f"through this model end to end (layout {policy.layout}); use prompt_tuning or p_tuning, whose tokens go "
            "through any model"
        )


@torch.no_grad()
def _draws(policy: Policy) -> bool:
    """Whether two passes over the same tokens differ in training."""
    tokens, training = probed(policy), policy.training
    with torch.random.fork_rng([]):
        policy.train()
        with noticeable_peft(policy.model):
            differ = not torch.equal(policy.sketch(tokens), policy.sketch(tokens))
        policy.train(training)
    return differ


class RankMoves:
    """What an adapter that moves its ranks is told of each step of a trainer.

    Args:
        trainer: whose steps.
        adapter: the adapter, which must move ranks.
    """

    def __init__(self, trainer: Trainer, adapter: PeftAdapter):
        self.trainer, self.adapter = trainer, adapter
        trainer.learner.before_update = self._regularise
        trainer.optimizer.register_step_post_hook(self._move)

    def _regularise(self) -> None:
        """Adds the gradient of the adapter's own term, once over all ranks."""
        term = orthogonality(self.adapter)
        if term is not None and self.trainer.cluster.is_main:
            term.backward()

    def _move(self, optimizer: torch.optim.Optimizer, *called_with: object) -> None:
        """After the update of the weights, while their gradients are still there."""
        move_ranks(self.adapter, self.trainer.progress.step + 1)


def follow_ranks(trainer: Trainer) -> list[str]:
    """Lets an adapter that moves its ranks follow the trainer; returns what to say of it."""
    adapter = peft_of(trainer.policy.model)
    if adapter is None or not moves_ranks(adapter):
        return []
    RankMoves(trainer, adapter)
    return [settle_steps(adapter, trainer.total_steps)]
