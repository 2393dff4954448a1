"""Small configurations of each tool, and how a test imports one."""

import json
from pathlib import Path
from typing import Any

from luthier.migrate.axolotl.convert import KEYS as AXOLOTL
from luthier.migrate.findings import Imported
from luthier.migrate.llamafactory.convert import KEYS as LLAMAFACTORY
from luthier.migrate.llamafactory.v1 import KEYS as V1
from luthier.migrate.tools import import_file
from luthier.migrate.torchtune.convert import KEYS as TORCHTUNE

SHARED = Path(__file__).parents[1].parent / "shared" / "migrate"
"""Configurations as the tools ship them; absent on most machines."""

SMALL: dict[str, dict[str, Any]] = {
    "llamafactory": {
        "model_name_or_path": "owner/name",
        "stage": "sft",
        "finetuning_type": "lora",
        "dataset": "rows",
        "cutoff_len": 1024,
    },
    "llamafactory-v1": {"model": "owner/name", "train_dataset": "rows.jsonl", "cutoff_len": 1024},
    "axolotl": {
        "base_model": "owner/name",
        "datasets": [{"path": "owner/rows", "type": "alpaca"}],
        "sequence_len": 1024,
        "micro_batch_size": 2,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
    },
    "torchtune": {
        "model": {"_component_": "torchtune.models.qwen3.qwen3_0_6b_base"},
        "tokenizer": {"_component_": "torchtune.models.qwen3.qwen3_tokenizer", "max_seq_len": 512},
        "checkpointer": {
            "_component_": "torchtune.training.FullModelHFCheckpointer",
            "checkpoint_dir": "Qwen3-1B",
        },
        "dataset": {"_component_": "torchtune.datasets.slimorca_dataset"},
        "optimizer": {"_component_": "torch.optim.AdamW", "lr": 2e-5},
        "batch_size": 2,
    },
}
"""The least that makes a run, in each tool's own keys."""

TABLES = {"llamafactory": LLAMAFACTORY, "llamafactory-v1": V1, "axolotl": AXOLOTL, "torchtune": TORCHTUNE}
"""Every key that is known, with its rule."""


def imported(folder: Path, values: dict[str, Any], **options: Any) -> Imported:
    """What a configuration comes to."""
    file = folder / "source.yaml"
    file.write_text(json.dumps(values), encoding="utf-8")
    return import_file(file, **options)


def small(tool: str, **changes: Any) -> dict[str, Any]:
    """A tool's small configuration with keys changed; None takes one out."""
    values = {**SMALL[tool], **changes}
    return {key: value for key, value in values.items() if value is not None}
