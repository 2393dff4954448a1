"""TRL's DPOTrainer on PEFT, as its documentation starts it; pairs come as ids. Options: micro, dtype, checkpointing."""

import tempfile
from pathlib import Path
from typing import Any

from bench.contestants.hf_common import (
    Told,
    common_arguments,
    load_adapter_values,
    lora_config,
    own_environment,
    telling,
)
from bench.protocol import Spec, Wire
from bench.rows import Rows, load_rows


def pairs(rows: Rows) -> dict[str, list[list[int]]]:
    """Rows under the names that TRL's collator reads."""
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    parts = [rows.row(index) for index in range(len(rows))]
    return {name: [row[place].tolist() for row in parts] for place, name in enumerate(names)}


def run(spec: Spec, wire: Wire) -> None:
    """Trains, and tells about every step."""
    own_environment()
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer
    from trl import DPOTrainer  # pyright: ignore[reportMissingImports]

    class FromIds(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset

    told = Told(spec, wire)
    with tempfile.TemporaryDirectory() as output:
        trainer = telling(FromIds, told)(
            model=spec["model"],
            args=arguments(spec, output),
            train_dataset=Dataset.from_dict(pairs(load_rows(spec["rows"]))),
            processing_class=AutoTokenizer.from_pretrained(spec["model"]),
            peft_config=lora_config(spec),
            callbacks=[told],
        )
        load_adapter_values(trainer.model, Path(spec["model"]))
        trainer.train()


def arguments(spec: Spec, output: str) -> Any:
    """The settings; rows are never cut, so that everybody reads the same tokens."""
    from trl import DPOConfig  # pyright: ignore[reportMissingImports]

    options = spec["options"]
    changed: dict[str, Any] = {}
    if dtype := options.get("dtype"):
        changed |= {"bf16": dtype == "bfloat16", "model_init_kwargs": {"dtype": dtype}}
    if "checkpointing" in options:
        changed["gradient_checkpointing"] = options["checkpointing"]
    return DPOConfig(
        **common_arguments(spec, output),
        beta=0.1,
        max_length=None,
        per_device_train_batch_size=options["micro"],
        gradient_accumulation_steps=max(1, round(spec["samples"] / options["micro"])),
        **changed,
    )
