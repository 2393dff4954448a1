"""Checkpoints: all that a run needs to go on bit for bit, written whole or not at all.

A checkpoint holds the trained weights (an adapter in PEFT's format, or all of them) and `trainer.pt`:
optimizer, progress, the random state of every rank, a reference that moves, and the position in the data: a function
of the step, unless the rows are a stream.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_model, save_model
from transformers import PreTrainedModel

from luthier.data.stream import StreamSource
from luthier.errors import RunError
from luthier.models.adapter_files import load_adapter, save_adapter
from luthier.models.lora import adapters
from luthier.models.peft_adapters.files import load_exactly, save_exactly, save_peft
from luthier.models.peft_adapters.held import peft_of
from luthier.optim.average import Average, put, swapped
from luthier.optim.stepper import shown_weights
from luthier.parallel.cluster import Cluster
from luthier.runs.atomic import atomic_folder, atomic_remove
from luthier.runs.folder import RunFolder
from luthier.training.loop import Trainer
from luthier.training.progress import Progress

STATE = "trainer.pt"
WEIGHTS = "weights.safetensors"


def save_checkpoint(
    trainer: Trainer, folder: RunFolder | None, base_name: str, revision: str | None = None
) -> Path | None:
    """Writes the checkpoint of the current step. Every rank takes part; the main one, which has a folder, writes."""
    states = trainer.cluster.gather(_random_state())
    path = None
    if folder is not None:
        path = folder.checkpoint(trainer.progress.step)
        with atomic_folder(path) as partial:
            with swapped(shown_weights(trainer.optimizer)) as trained:
                _save_weights(trainer.policy.model, partial, base_name, revision)
            names = {id(parameter): name for name, parameter in trainer.policy.named_parameters()}
            state = {
                "optimizer": trainer.optimizer.state_dict(),
                "names": _names(trainer),
                "trained": {names[id(parameter)]: weight for parameter, weight in trained.items()},
                "average": average.state() if (average := _average(trainer)) else [],
                "progress": asdict(trainer.progress),
                "random": states,
                "micro_tokens": trainer.source.micro_tokens,
                "statistics": trainer.learner.statistics,
                "router_load": None if (routers := trainer.policy.routers) is None else routers.load_E,
                "reference": reference.state() if (reference := trainer.learner.reference) else [],
                "source": trainer.source.state(),
                "total_steps": trainer.schedule.total_steps,
            }
            torch.save(state, partial / STATE)
    trainer.cluster.barrier()
    return path


def load_checkpoint(trainer: Trainer, path: Path, *, same_rows: bool = True) -> None:
    """Puts weights, optimizer, progress and random state back as they were when `path` was saved.

    `same_rows`: the position in the data too. Without it the next step has the first rows.

    Raises:
        RunError: the checkpoint cannot be read, or was saved by another number of processes.
    """
    try:
        state = torch.load(path / STATE, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise RunError(
            f"checkpoint {path} cannot be read ({error}). Remove that folder to use the one before."
        ) from error
    if len(state["random"]) != trainer.cluster.world:
        raise RunError(
            f"checkpoint {path} was saved by {len(state['random'])} processes and this run has "
            f"{trainer.cluster.world}; a bit-for-bit resume needs as many. Start it with that number."
        )
    micro_tokens = state.get("micro_tokens", trainer.source.micro_tokens)
    if same_rows and micro_tokens != trainer.source.micro_tokens:
        raise RunError(
            f"checkpoint {path} was saved by a run with {micro_tokens} tokens in a micro-batch and this one has "
            f"{trainer.source.micro_tokens}, so its steps would hold other rows. "
            f"Set train.tokens_per_micro_batch: {micro_tokens}."
        )
    load_weights(trainer.policy.model, path)
    parameters = dict(trainer.policy.named_parameters())
    put({parameters[name]: weight for name, weight in state.get("trained", {}).items() if name in parameters})
    if (average := _average(trainer)) and state.get("average"):
        average.restore(state["average"])
    trainer.optimizer.load_state_dict(_in_order(state["optimizer"], state.get("names"), trainer))
    trainer.progress = Progress(**state["progress"])
    trainer.learner.statistics = state.get("statistics")
    if trainer.policy.routers is not None:
        trainer.policy.routers.load_E = state.get("router_load")
    if trainer.learner.reference is not None and state.get("reference"):
        trainer.learner.reference.restore(state["reference"])
    if not same_rows:
        trainer.source.begin_at(trainer.progress.step)
    elif state.get("source"):
        trainer.source.restore(state["source"])
        if isinstance(trainer.source, StreamSource) and trainer.source.epochs is not None:  # it was estimated
            trainer.schedule = replace(trainer.schedule, total_steps=state["total_steps"])
    _set_random_state(state["random"][trainer.cluster.rank])


def _average(trainer: Trainer) -> Average | None:
    """The running mean of the weights, if there is one."""
    return getattr(trainer.optimizer, "average", None)


def _names(trainer: Trainer) -> list[str]:
    """The names of the trained weights in the optimizer's order."""
    names = {id(parameter): name for name, parameter in trainer.policy.named_parameters()}
    return [names[id(parameter)] for group in trainer.optimizer.param_groups for parameter in group["params"]]


def _in_order(saved: dict[str, Any], names: list[str] | None, trainer: Trainer) -> dict[str, Any]:
    """The optimizer's state in the order of this run's weights, which other groups may have changed."""
    now = _names(trainer)
    if names is None or names == now:
        return saved
    number = {name: position for position, name in enumerate(now)}
    state = {number[names[old]]: value for old, value in saved["state"].items() if names[old] in number}
    return {**saved, "state": state}


def saved_steps(folder: RunFolder, cluster: Cluster) -> list[int]:
    """The steps with a checkpoint as the main rank sees them, so that all ranks do the same."""
    return cluster.gather(folder.saved_steps())[0]


def check_seen(path: Path, cluster: Cluster) -> None:
    """Refuses on every rank a checkpoint that one of them cannot see.

    Raises:
        RunError: with the ranks that cannot.
    """
    blind = [str(rank) for rank, seen in enumerate(cluster.gather(path.is_dir())) if not seen]
    if blind:
        raise RunError(
            f"checkpoint {path} is not seen by rank {', '.join(blind)}. All processes must see the run's folder; "
            "put run.root on storage that all machines share."
        )


def _save_weights(model: PreTrainedModel, folder: Path, base_name: str, revision: str | None) -> None:
    """The adapter in PEFT's format if there is one; otherwise all weights under the names they have in memory."""
    if peft_of(model) is not None:
        save_peft(model, folder, base_name=base_name, revision=revision)
        save_exactly(model, folder)
    elif adapters(model):
        save_adapter(model, folder, base_name=base_name, revision=revision)
    else:  # not save_pretrained: many families have other names on disk, which only loading a model translates
        save_model(model, str(folder / WEIGHTS))


def load_weights(model: PreTrainedModel, folder: Path) -> None:
    """Reads the weights of a checkpoint back into the same model.

    Raises:
        RunError: they are not those of this model.
    """
    if peft_of(model) is not None:
        load_exactly(model, folder)
        return
    if adapters(model):
        load_adapter(model, folder)
        return
    try:
        load_model(model, folder / WEIGHTS)
    except RuntimeError as error:
        faults = _misfits(model, folder / WEIGHTS)
        if not faults:
            raise
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise RunError(
            f"the weights of checkpoint {folder} do not fit this run's model: {'; '.join(faults[:3])}{more}. The run "
            "that saved them and this one need the same model.name and model.new_tokens, and methods that train the "
            "same kind of head."
        ) from error


def _misfits(model: PreTrainedModel, path: Path) -> list[str]:
    """Which weights of a file are not the model's."""
    with safe_open(path, "pt") as file:
        saved = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 - no mapping
    weights = model.state_dict()
    own = {name: tuple(weight.shape) for name, weight in weights.items()}
    there = {weights[name].data_ptr() for name in saved if name in own}  # tied weights are saved once
    faults = [
        f"{name} is {shape} there, {own[name]} here"
        for name, shape in saved.items()
        if own.get(name, shape) != shape
    ]
    faults += [f"{name} is only there" for name in saved if name not in own]
    return faults + [
        f"{name} is only here"
        for name, weight in weights.items()
        if name not in saved and weight.data_ptr() not in there
    ]


def prune_checkpoints(folder: RunFolder, keep: int, best_step: int) -> None:
    """Removes all but the newest `keep` checkpoints and the best one."""
    for step in folder.saved_steps()[:-keep]:
        if step != best_step:
            atomic_remove(folder.checkpoint(step))


def _random_state() -> dict[str, Any]:
    state: dict[str, Any] = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
