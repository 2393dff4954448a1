"""Restarts of adapters (ReLoRA; Lialin et al., 2023, arXiv:2307.05695).

Before some steps what A and B have learned is moved to a place of its own that is never trained, A is drawn anew, B is
zero, the optimizer has no states of them, and the learning rate rises again. A sum of updates of a small rank has the
sum of their ranks. The base's weights never change: so it may be stored in few bits, a reference stays what it was, and
an adapter's file holds all that was learned, as a checkpoint does.
"""

import math

import torch

from luthier.config.tree import Config
from luthier.data.stream import StreamSource
from luthier.errors import ConfigError
from luthier.models.lora import adapters_called
from luthier.models.lora_init import load_init
from luthier.optim.stepper import Stepper
from luthier.training.loop import Trainer
from luthier.training.progress import Report


def restarts_of(config: Config, total_steps: int) -> tuple[tuple[int, ...], int]:
    """The steps, counted from 0, before which adapters begin anew; and in how many steps the learning rate rises again.

    Raises:
        ConfigError: the run is too short for them.
    """
    section = config.lora.restart if config.lora is not None else None
    if section is None:
        return (), 0
    every = section.every or total_steps // (section.times + 1)
    if every <= section.warmup or section.times * every >= total_steps > 1:
        raise ConfigError(
            f"lora.restart has {section.times} restarts every {every} steps, of which {section.warmup} bring the "
            f"learning rate back, and the run has {total_steps} steps. Lower lora.restart.times, every or warmup, or "
            "train longer"
        )
    return tuple(every * number for number in range(1, section.times + 1)), section.warmup


class Restart:
    """A hook that begins adapters anew after the steps before which the schedule has restarts.

    Args:
        init: how A starts.
        seed: what it is drawn by, together with the number of the restart.
    """

    def __init__(self, init: str, seed: int):
        self.begin, self.seed = load_init(init), seed

    def __call__(self, trainer: Trainer, report: Report) -> None:
        if report.step not in trainer.schedule.restarts:
            return
        number = trainer.schedule.restarts.index(report.step)
        generator = torch.Generator().manual_seed((self.seed + 7919 * (number + 1)) % 2**63)
        changed = []
        for module in adapters_called(trainer.policy.model, "").values():
            like = torch.empty(module.out_features, module.in_features, device="meta")
            drawn_RK, _ = self.begin(like, module.rank, module.scale, generator)
            module.take_in(number, drawn_RK.to(module.lora_A))
            changed += [module.lora_A, module.lora_B]
        assert isinstance(trainer.optimizer, Stepper), "every optimizer of a run is one"
        trainer.optimizer.renew([weight for weight in changed if weight.requires_grad])


def add_restarts(config: Config, trainer: Trainer) -> list[str]:
    """Makes the trainer begin adapters anew where the config wants it; returns what to say of it.

    Raises:
        ConfigError: how many steps there are is not known.
    """
    lora = config.lora
    if lora is None or lora.restart is None:
        return []
    if (
        lora.restart.every is None
        and isinstance(trainer.source, StreamSource)
        and trainer.source.epochs is not None
    ):
        raise ConfigError(
            "lora.restart cuts the run into equal parts, and how many steps a stream has is not known; give "
            "lora.restart.every, or train.steps"
        )
    trainer.hooks.insert(0, Restart(lora.init, config.seed))
    steps = ", ".join(map(str, trainer.schedule.restarts))
    linears = adapters_called(trainer.policy.model, "").values()
    most = min((min(one.in_features, one.out_features) / one.rank for one in linears), default=math.inf)
    note = f"adapters begin anew after step {steps}"
    if lora.restart.times + 1 > most:
        note += "; together they have more ranks than some weights have directions: to tune all costs less"
    return [note]
