"""From a config to what updates weights: the optimizer and the schedule of its learning rate."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn
from transformers import PreTrainedModel

import luthier.optim
from luthier.config.plugins import load_plugin
from luthier.config.tree import Config
from luthier.errors import ConfigError
from luthier.optim.average import Average
from luthier.optim.base import Algorithm
from luthier.optim.on_disk import OnDisk
from luthier.optim.schedules import Schedule
from luthier.optim.stepper import Stepper
from luthier.optim.stochastic import StochasticRounding
from luthier.training.restarts import restarts_of
from luthier.training.weights import about_weights, rules_of


def build_algorithm(config: Config) -> Algorithm:
    """The optimizer's settings.

    Raises:
        ConfigError: settings that cannot work together.
    """
    algorithm: Algorithm = plugin(luthier.optim, config.optim.name, config.optim.options)
    if algorithm.replaces_schedule and config.schedule.name != "constant":
        raise ConfigError(
            f"schedule.name is {config.schedule.name}, but optim.name: {config.optim.name} stands in for a learning "
            "rate that falls; set schedule: constant (warm-up stays)"
        )
    if algorithm.replaces_schedule and config.train.average is not None:
        raise ConfigError(
            f"train.average is {config.train.average:g}, but optim.name: {config.optim.name} keeps an average of its "
            "own; leave out train.average"
        )
    return algorithm


def build_optimizer(
    config: Config, trained: Sequence[tuple[str, nn.Parameter]], model: PreTrainedModel
) -> Stepper:
    """The optimizer over the trained weights, with a running mean of them if that is asked for.

    Raises:
        ConfigError: settings that cannot work together, or a group that means no weight.
    """
    optimizer = build_algorithm(config).build(
        trained,
        config.learning_rate,
        rules_of(config, trained, model),
        about_weights(trained, model),
    )
    if config.optim.stochastic_rounding:
        kinds = {parameter.dtype for _, parameter in trained}
        if torch.bfloat16 not in kinds:
            raise ConfigError(
                f"optim.stochastic_rounding is true, but the weights are {', '.join(map(str, kinds))}, which take "
                "updates exactly. Set model.dtype: bfloat16, or leave it out."
            )
        optimizer.rounding = StochasticRounding(config.seed)
    if config.train.average is not None:
        weights = [parameter for _, parameter in trained]
        optimizer.average = Average(weights, config.train.average, config.train.average_from or 1)
    optimizer.on_disk = disk_of(config, on_gpu=any(parameter.is_cuda for _, parameter in trained))
    return optimizer


def disk_of(config: Config, *, on_gpu: bool) -> OnDisk | None:
    """Where the optimizer's states lie, if not in RAM.

    Raises:
        ConfigError: they would be far from a GPU.
    """
    if config.memory.optimizer == "ram":
        return None
    if on_gpu:
        raise ConfigError(
            "memory.optimizer is disk, which is for training on a CPU: on a GPU states would cross the bus twice in "
            "each step. Leave it out, or set optim.name: adamw_8bit, whose states take a quarter"
        )
    return OnDisk(Path(config.run.root))


def plugin(package: ModuleType, name: str, options: dict[str, Any]) -> Any:
    """A method or an optimizer by the name of its file.

    Raises:
        ConfigError: its settings cannot work together.
    """
    try:
        return load_plugin(package, name)(**options)
    except ValidationError as error:  # what a plugin checks itself: options that do not go together
        raise ConfigError([_told(name, fault["loc"], fault["msg"]) for fault in error.errors()]) from error


def _told(name: str, place: tuple[int | str, ...], message: str) -> str:
    """What is wrong with an option; a plugin's own words need no place."""
    if message.startswith("Value error, ") or not place:
        return message.removeprefix("Value error, ")
    return f"{name}: the option {'.'.join(map(str, place))} does not fit: {message}"


def build_schedule(config: Config, total_steps: int) -> Schedule:
    """How the learning rate moves over so many steps.

    Raises:
        ConfigError: its phases do not fit into the run.
    """
    section = config.schedule
    ratio = 0.03 if section.warmup_ratio is None else section.warmup_ratio
    warmup = section.warmup_steps if section.warmup_steps is not None else round(ratio * total_steps)
    if warmup >= total_steps > 1 and section.warmup_steps is not None:
        raise ConfigError(
            f"schedule.warmup_steps is {warmup}, but the run has only {total_steps} steps, so the learning rate "
            "would never reach its peak. Lower it, or train longer."
        )
    decay = (section.decay_steps or 0) if section.name == "wsd" else 0
    if decay and warmup + decay > total_steps:
        raise ConfigError(
            f"schedule.decay_steps is {decay}, after {warmup} of warm-up, but the run has only {total_steps} steps. "
            "Lower it, or train longer."
        )
    return Schedule(
        section.name,
        total_steps,
        warmup,
        section.min_ratio,
        section.decay_ratio or 0.2,
        section.decay_steps,
        section.decay_shape or "linear",
        *restarts_of(config, total_steps),
    )
