"""Luthier as its users get it: a config, its defaults, the training loop. Only the rows come as ids.

Options: method, sft if absent. Rows of one prompt with several answers are what encoding makes of judged answers:
a prompt and its children.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.contestants.checkpoint import ADAPTER
from bench.protocol import Clock, Spec, Wire
from bench.rows import Rows, load_rows

if TYPE_CHECKING:
    from luthier.data.batch import Batch, Example
    from luthier.training.loop import Trainer
    from luthier.training.progress import Report


class Documents:
    """Rows as Luthier's dataset."""

    def __init__(self, rows: Rows):
        self.rows = rows
        self._starts = np.concatenate([[0], np.cumsum(rows.tokens)])

    @property
    def lengths(self) -> Any:
        return self.rows.tokens

    def example(self, index: int) -> "Example":
        from luthier.data.batch import Example, Segment

        start, end = int(self._starts[index]), int(self._starts[index + 1])
        sizes = self.rows.lengths[index]
        if len(sizes) == 2:
            learned = np.arange(end - start) >= sizes[0]
            return Example((Segment(self.rows.ids[start:end], learned.astype(np.float32)),), row=index)
        prompt, *answers = np.split(self.rows.ids[start:end], np.cumsum(sizes)[:-1])
        children = [Segment(answer, np.ones(len(answer), np.float32), 0) for answer in answers]
        return Example((Segment(prompt, np.zeros(len(prompt), np.float32)), *children), row=index)

    def locate(self, row: int) -> str:
        return f"row {row}"


def run(spec: Spec, wire: Wire) -> None:
    """Trains, and tells about every step."""
    from luthier.threads import wait_without_spinning

    wait_without_spinning()  # what the command line does before it imports torch
    documents = Documents(load_rows(spec["rows"]))
    trainer, notes = build(spec, documents)
    for note in notes:
        wire.send("note", text=note)
    trainer.source = steps_of_rows(trainer, spec["samples"])
    if spec.get("gradients"):
        keep_first_gradients(trainer, Path(spec["gradients"]))
    wire.send("loaded")
    trainer.hooks.append(reporter(spec, wire))
    if spec.get("profile"):
        from bench.profile import profiled

        wire.send("result", name="profile", value=profiled(trainer))
        return
    trainer.run()


def build(spec: Spec, documents: Documents) -> tuple["Trainer", list[str]]:
    """The trainer that a config with these settings gives, the shared adapter in it."""
    from luthier.config.load import config_from_dict
    from luthier.parallel.cluster import Cluster
    from luthier.training.build import Data, build_trainer

    longest = int(documents.lengths.max())
    values: dict[str, Any] = {
        "model": {"name": spec["model"], "device": spec["device"]},
        "data": {"path": "rows-come-as-ids", "max_length": longest},
        "method": spec.get("options", {}).get("method", "sft"),
        "optim": {"lr": spec["lr"]},
        "schedule": {"name": "constant", "warmup_steps": 0},
        "train": {"steps": spec["max_steps"]},
        **spec["settings"],
    }
    if longest > 4096:  # the default micro-batch
        values["train"] |= {"tokens_per_micro_batch": longest, "tokens_per_step": max(16384, longest)}
    if values["method"] == "dpo":  # as in a run that sees its rows once, which is the usual one
        values["reference"] = {"precompute": False}
    if spec["rank"]:
        values["lora"] = {"rank": spec["rank"]}
    if spec.get("four_bit"):
        values["quant"] = "nf4"
    trainer, _, notes = build_trainer(config_from_dict(values), Data(documents, None, {}, ()), Cluster())
    if spec["rank"]:
        copy_adapter(trainer, Path(spec["model"]) / ADAPTER)
    if spec.get("no_clip"):
        trainer.max_grad_norm = None
    return trainer, notes


def copy_adapter(trainer: "Trainer", folder: Path) -> None:
    """Puts the shared adapter's values into the trainer's adapter."""
    import torch
    from safetensors.torch import load_file

    from luthier.models.lora import adapter_parameters

    saved = {
        shared_name(name): tensor for name, tensor in load_file(folder / "adapter_model.safetensors").items()
    }
    mine = {shared_name(name): p for name, p in adapter_parameters(trainer.policy.model).items()}
    if set(saved) != set(mine):
        raise RuntimeError(f"adapters differ: {sorted(set(saved) ^ set(mine))[:4]}")
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(saved[name])


def shared_name(name: str) -> str:
    """A parameter's name without what PEFT adds."""
    for part in ("base_model.model.", ".default", ".weight"):
        name = name.replace(part, "")
    return name


def steps_of_rows(trainer: "Trainer", samples: int) -> Any:
    """A source whose steps hold `samples` rows each, in order, packed as Luthier packs.

    Its own source counts a step in tokens; the others count rows, and all are to learn from the same ones.
    """
    from luthier.data.batch import collate
    from luthier.data.loader import StepSource
    from luthier.data.pack import pack
    from luthier.data.sharing import num_logical_tokens, share_prefixes

    class RowSteps(StepSource):
        def step(self, step: int) -> "list[Batch]":
            lengths = np.asarray(self.dataset.lengths)
            rows = np.arange(step * samples, (step + 1) * samples) % len(lengths)
            packs: Sequence[Any] = pack(lengths[rows], self.micro_tokens)
            batches = [collate([self.dataset.example(int(i)) for i in rows[p]]) for p in packs]
            # as the others count: every answer with a prompt of its own
            self.tokens = sum(map(num_logical_tokens, batches))
            self.learned = sum(int((batch.weight_N > 0).sum()) for batch in batches)
            return [share_prefixes(batch) for batch in batches] if old.sharing else batches

    old = trainer.source
    return RowSteps(old.dataset, tokens_per_step=old.micro_tokens, micro_tokens=old.micro_tokens)  # pyright: ignore[reportAttributeAccessIssue]


def reporter(spec: Spec, wire: Wire) -> Any:
    """A hook that tells about each step and ends the run when the time is over."""
    clock, samples = Clock(spec), spec["samples"]

    def tell(trainer: "Trainer", report: "Report") -> None:
        wire.step(
            loss=report.values["loss"],
            norm=report.values["grad_norm"],
            rows=samples,
            tokens=trainer.source.tokens,  # pyright: ignore[reportAttributeAccessIssue]
            learned=trainer.source.learned,  # pyright: ignore[reportAttributeAccessIssue]
            **gpu_memory(),
        )
        if clock.enough():
            trainer.progress.stopping = "the measurement is over"

    return tell


def gpu_memory() -> dict[str, int]:
    """Most memory of the GPU that tensors took, and that torch held."""
    import torch

    if not torch.cuda.is_available():
        return {}
    return {
        "gpu_allocated": torch.cuda.max_memory_allocated(),
        "gpu_reserved": torch.cuda.max_memory_reserved(),
    }


def keep_first_gradients(trainer: "Trainer", path: Path) -> None:
    """Writes the gradients of the first step, just before they are used."""

    def keep(optimizer: Any, args: Any, kwargs: Any) -> None:
        if not path.exists():
            save_gradients(trainer.policy.model.named_parameters(), path)

    trainer.optimizer.register_step_pre_hook(keep)


def save_gradients(named_parameters: Any, path: Path) -> None:
    """Writes gradients by shared name."""
    import torch
    from safetensors.torch import save_file

    gradients = {
        shared_name(name): p.grad.detach().to("cpu", torch.float32).contiguous().clone()
        for name, p in named_parameters
        if p.grad is not None
    }
    partial = path.with_suffix(".partial")
    save_file(gradients, partial)
    os.replace(partial, path)
