"""Unsloth as its notebooks start it: FastLanguageModel, its own gradient checkpointing, TRL's trainer. GPU only.

Written against Unsloth's documented interface; not yet run, as no GPU was at hand.
"""

import tempfile
from pathlib import Path

from bench.contestants.hf_common import (
    Told,
    accumulation,
    common_arguments,
    load_adapter_values,
    own_environment,
    sft_columns,
    telling,
)
from bench.protocol import Spec, Wire
from bench.rows import load_rows


def run(spec: Spec, wire: Wire) -> None:
    """Trains, and tells about every step."""
    own_environment()
    from unsloth import FastLanguageModel  # first: it changes the libraries below  # isort: skip  # pyright: ignore[reportMissingImports]
    from datasets import Dataset  # pyright: ignore[reportMissingImports]
    from trl import SFTConfig, SFTTrainer  # pyright: ignore[reportMissingImports]

    rows, options = load_rows(spec["rows"]), spec["options"]
    model, tokenizer = FastLanguageModel.from_pretrained(
        spec["model"],
        max_seq_length=options.get("max_length", 1024),
        load_in_4bit=bool(spec.get("four_bit")),
        full_finetuning=spec["rank"] is None,
    )
    if spec["rank"]:
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        model = FastLanguageModel.get_peft_model(
            model,
            r=spec["rank"],
            lora_alpha=2 * spec["rank"],
            lora_dropout=0,
            target_modules=targets,
            use_gradient_checkpointing="unsloth",
        )
        load_adapter_values(model, Path(spec["model"]))
    told = Told(spec, wire)
    with tempfile.TemporaryDirectory() as output:
        trainer = telling(SFTTrainer, told)(
            model=model,
            processing_class=tokenizer,
            train_dataset=Dataset.from_dict(sft_columns(rows)),
            args=SFTConfig(
                **common_arguments(spec, output),
                per_device_train_batch_size=options["micro"],
                gradient_accumulation_steps=accumulation(spec, rows),
                max_length=options.get("max_length", 1024),
            ),
            callbacks=[told],
        )
        trainer.train()
