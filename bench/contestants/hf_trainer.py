"""transformers' own Trainer on PEFT: what a short script of one's own uses. Options: micro, dtype."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from bench.contestants.hf_common import (
    Told,
    accumulation,
    common_arguments,
    load_adapter_values,
    lora_config,
    own_environment,
    sft_columns,
    telling,
)
from bench.protocol import Spec, Wire
from bench.rows import load_rows

PAD = 1


def run(spec: Spec, wire: Wire) -> None:
    """Trains, and tells about every step."""
    own_environment()
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    rows, options = load_rows(spec["rows"]), spec["options"]
    columns = sft_columns(rows)
    data = [
        {"input_ids": i, "labels": t} for i, t in zip(columns["input_ids"], columns["labels"], strict=True)
    ]
    told = Told(spec, wire)
    model: Any = AutoModelForCausalLM.from_pretrained(spec["model"], dtype=getattr(torch, options["dtype"]))
    if spec["rank"]:
        from peft import get_peft_model

        model = get_peft_model(model, lora_config(spec))
        load_adapter_values(model, Path(spec["model"]))
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            **common_arguments(spec, output),
            per_device_train_batch_size=options["micro"],
            gradient_accumulation_steps=accumulation(spec, rows),
            bf16=options["dtype"] == "bfloat16",
        )
        trainer = telling(Trainer, told)(
            model=model,
            args=arguments,
            train_dataset=data,
            data_collator=pad,
            callbacks=[told],
        )
        trainer.train()


def pad(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Rows padded on the right to the longest of them."""
    longest = max(len(row["input_ids"]) for row in rows)

    def filled(name: str, value: int) -> torch.Tensor:
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in rows])

    mask = torch.tensor([[int(place < len(row["input_ids"])) for place in range(longest)] for row in rows])
    return {"input_ids": filled("input_ids", PAD), "labels": filled("labels", -100), "attention_mask": mask}
