"""What the contestants built on transformers' Trainer share: rows as a dataset, counting, the shared adapter."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from bench.contestants.checkpoint import ADAPTER
from bench.protocol import Clock, Spec, Wire
from bench.rows import Rows


def sft_columns(rows: Rows) -> dict[str, list[list[int]]]:
    """Rows as ids and labels, -100 where nothing is learned."""
    ids, labels = [], []
    for index in range(len(rows)):
        row, learned = rows.flat(index)
        ids.append(row.tolist())
        labels.append([token if learn else -100 for token, learn in zip(row.tolist(), learned, strict=True)])
    return {"input_ids": ids, "labels": labels}


def own_environment() -> None:
    """Nothing of these libraries is to use the network, or to report anywhere."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def common_arguments(spec: Spec, output: str) -> dict[str, Any]:
    """Arguments that all contestants have alike: what is learned and how fast, never how it is computed."""
    return {
        "output_dir": output,
        "learning_rate": spec["lr"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_steps": spec["max_steps"],
        "train_sampling_strategy": "sequential",
        "report_to": "none",
        "save_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": spec["device"] == "cpu",
        "seed": 0,
    }


def load_adapter_values(model: Any, folder: Path) -> None:
    """Puts the shared adapter's values into PEFT's adapter."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    result = set_peft_model_state_dict(model, load_file(folder / ADAPTER / "adapter_model.safetensors"))
    missing = [key for key in result.missing_keys if "lora_" in key]
    if missing or result.unexpected_keys:
        raise RuntimeError(f"the adapter does not fit: {missing[:2]} {result.unexpected_keys[:2]}")


def lora_config(spec: Spec) -> Any:
    """The adapter's settings for PEFT: those of Luthier's defaults, on all linear layers but the head."""
    from peft import LoraConfig

    return LoraConfig(
        r=spec["rank"],
        lora_alpha=2 * spec["rank"],
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def count(inputs: dict[str, Any]) -> dict[str, int]:
    """What a micro-batch holds: rows, tokens that are not padding, tokens that are learned.

    Of preference pairs, which come as twice as many documents, a row is a pair.
    """
    if "completion_mask" in inputs:
        mask = inputs["attention_mask"]
        learned = int(inputs["completion_mask"].sum())
        return {"rows": mask.shape[0] // 2, "tokens": int(mask.sum()), "learned": learned}
    if "attention_mask" in inputs:
        mask = inputs["attention_mask"]
        rows, tokens = mask.shape[0], int(mask.sum())
    else:  # documents laid end to end, each with positions from 0
        positions = inputs["position_ids"]
        rows, tokens = int((positions == 0).sum()), positions.numel()
    return {"rows": rows, "tokens": tokens, "learned": int((inputs["labels"][:, 1:] != -100).sum())}


class Told(TrainerCallback):
    """Tells the harness about micro-batches and steps, and ends the run when the time is over."""

    def __init__(self, spec: Spec, wire: Wire):
        self.wire, self.spec = wire, spec
        self.clock: Clock | None = None
        self.loss = 0.0
        self.sums = {"rows": 0, "tokens": 0, "learned": 0}

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.wire.send("loaded")
        self.clock = Clock(self.spec)

    def micro(self, counted: dict[str, int], loss: torch.Tensor) -> None:
        """After each micro-batch. The losses of a step's micro-batches add up to that of the step."""
        self.loss += float(loss)
        self.sums = {name: total + counted[name] for name, total in self.sums.items()}
        self.wire.send("micro", **counted)
        assert self.clock is not None
        self.clock.check()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        memory = {}
        if torch.cuda.is_available():
            memory["gpu_allocated"] = torch.cuda.max_memory_allocated()
            memory["gpu_reserved"] = torch.cuda.max_memory_reserved()
        self.wire.step(loss=self.loss, **self.sums, **memory)
        self.loss, self.sums = 0.0, dict.fromkeys(self.sums, 0)
        assert self.clock is not None
        control.should_training_stop = self.clock.enough()
        return control


def telling(trainer_class: type[Any], told: Told) -> type[Any]:
    """The trainer class with its micro-batches counted from outside, before the trainer sees them."""

    class Telling(trainer_class):
        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
            counted = count(inputs)
            loss = super().training_step(model, inputs, num_items_in_batch)
            told.micro(counted, loss)
            return loss

    return Telling


def accumulation(spec: Spec, rows: Rows) -> int:
    """Micro-batches of a step. With packing, as many packs as hold about the step's rows."""
    micro, samples = spec["options"]["micro"], spec["samples"]
    if spec["options"].get("packing"):
        samples = max(1, round(samples * float(rows.tokens.mean()) / spec["options"]["max_length"]))
    return max(1, round(samples / micro))
