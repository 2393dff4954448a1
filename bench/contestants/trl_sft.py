"""TRL's SFTTrainer on PEFT, as its documentation starts it; options of a sweep row go over the defaults.

Options: micro (rows a device batch; 8 is the default), dtype, checkpointing, packing, max_length, liger.
Absent ones stay as TRL has them: weights in fp32, bfloat16 autocast, gradient checkpointing, no packing.
"""

import tempfile
from pathlib import Path
from typing import Any

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
from bench.rows import Rows, load_rows


def run(spec: Spec, wire: Wire) -> None:
    """Trains, and tells about every step."""
    own_environment()
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from transformers import AutoTokenizer
    from trl import SFTTrainer  # pyright: ignore[reportMissingImports]

    rows = load_rows(spec["rows"])
    told = Told(spec, wire)
    with tempfile.TemporaryDirectory() as output:
        trainer = telling(SFTTrainer, told)(
            model=spec["model"],
            args=arguments(spec, rows, output),
            train_dataset=Dataset.from_dict(sft_columns(rows)),
            processing_class=AutoTokenizer.from_pretrained(spec["model"]),
            peft_config=lora_config(spec) if spec["rank"] else None,
            quantization_config=four_bit() if spec.get("four_bit") else None,
            callbacks=[told],
        )
        if spec["rank"]:
            load_adapter_values(trainer.model, Path(spec["model"]))
        trainer.train()


def arguments(spec: Spec, rows: Rows, output: str) -> Any:
    """The settings of one row of the sweep."""
    from trl import SFTConfig  # pyright: ignore[reportMissingImports]

    options = spec["options"]
    changed: dict[str, Any] = {}
    if dtype := options.get("dtype"):
        changed |= {"bf16": dtype == "bfloat16", "model_init_kwargs": {"dtype": dtype}}
    if "checkpointing" in options:
        changed["gradient_checkpointing"] = options["checkpointing"]
    if "packing" in options:
        changed["packing"] = options["packing"]
    if "max_length" in options:
        changed["max_length"] = options["max_length"]
    if options.get("liger"):
        changed["use_liger_kernel"] = True
    return SFTConfig(
        **common_arguments(spec, output),
        per_device_train_batch_size=options["micro"],
        gradient_accumulation_steps=accumulation(spec, rows),
        **changed,
    )


def four_bit() -> Any:
    """QLoRA's quantisation of the base, as TRL's documentation sets it."""
    import torch
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
