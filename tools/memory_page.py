"""Writes the tables of docs/memory.md: what training takes, by method and size of model.

`--check` writes nothing and exits with 1 if the page is not up to date.
"""

import sys
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from luthier.config.load import config_from_dict
from luthier.models.activations.levels import Level
from luthier.plan.memory import Peak, peak_of
from luthier.training.sketch import Sketch, sketch

PAGE = Path(__file__).resolve().parents[1] / "docs" / "memory.md"
BEGIN, END = "<!-- tables: python tools/memory_page.py -->", "<!-- end of tables -->"
GB = 10**9

QWEN = {"model_type": "qwen3", "vocab_size": 151936, "head_dim": 128, "max_position_embeddings": 40960}
LLAMA = {"model_type": "llama", "vocab_size": 128256, "head_dim": 128, "max_position_embeddings": 131072}
MODELS = {
    "Qwen3-0.6B": QWEN
    | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
    | {"num_key_value_heads": 8, "tie_word_embeddings": True},
    "Qwen3-4B": QWEN
    | {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "tie_word_embeddings": True},
    "Llama-3.1-8B": LLAMA
    | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}
    | {"num_key_value_heads": 8, "tie_word_embeddings": False},
    "Llama-3.1-70B": LLAMA
    | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64}
    | {"num_key_value_heads": 8, "tie_word_embeddings": False},
}
LORA = {"lora": {"rank": 16}}
FEWEST: dict[str, Any] = {"quant": {"name": "nf4", "embeddings": "nf4"}}
METHODS: dict[str, dict[str, Any]] = {
    "all weights, `adamw`": {},
    "all weights, `adamw_8bit`": {"optim": {"name": "adamw_8bit"}},
    "all weights, `adafactor`": {"optim": {"name": "adafactor"}},
    "LoRA rank 16": LORA,
    "LoRA rank 16, `int8`": LORA | {"quant": "int8"},
    "LoRA rank 16, `nf4`": LORA | {"quant": "nf4"},
    "the same, embeddings too": LORA | FEWEST,
    "the same, `adamw_8bit`": LORA | FEWEST | {"optim": {"name": "adamw_8bit"}},
}
SMALLEST = "the same, `adamw_8bit`"
LEVELS = {"kept": Level.KEEP_ALL, "made again": Level.KEEP_INPUT, "in RAM": Level.OFFLOAD_INPUT}


@cache
def drawn(model: str, method: str) -> Sketch:
    """The model as it would train on a GPU in bfloat16."""
    values: dict[str, Any] = dict(MODELS[model])
    shape = AutoConfig.for_model(values.pop("model_type"), **values)
    run = {"model": {"name": model, "dtype": "bfloat16"}, "data": "rows.jsonl", **METHODS[method]}
    return sketch(config_from_dict(run, []), shape, device="cuda")


def peak(model: str, method: str, tokens: int, level: Level) -> Peak:
    """What the GPU holds at most."""
    return peak_of(drawn(model, method).sizes(level), tokens)


def table(tokens: int) -> list[str]:
    """Rows of methods, columns of models."""
    lines = [
        f"| {tokens:,} tokens | activations | " + " | ".join(MODELS) + " |",
        "|---" * (2 + len(MODELS)) + "|",
    ]
    for method in METHODS:
        for name, level in LEVELS.items():
            peaks = [peak(model, method, tokens, level).total / GB for model in MODELS]
            lines.append(f"| {method} | {name} | " + " | ".join(f"{size:,.1f}" for size in peaks) + " |")
    return lines


def parts() -> list[str]:
    """What the smallest QLoRA of 8B and 70B is made of."""
    peaks = {
        name: peak(name, SMALLEST, 2048, Level.OFFLOAD_INPUT) for name in ("Llama-3.1-8B", "Llama-3.1-70B")
    }
    names = dict.fromkeys(part for one in peaks.values() for part in one.parts)
    lines = [
        "| `nf4`, embeddings too, `adamw_8bit`, 2,048 tokens, activations in RAM | "
        + " | ".join(peaks)
        + " |",
        "|---" * (1 + len(peaks)) + "|",
    ]
    for name in names:
        row = " | ".join(f"{one.parts.get(name, 0) / GB:.2f}" for one in peaks.values())
        lines.append(f"| {name} | {row} |")
    return lines


def text() -> str:
    """The page with new tables."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = "\n\n".join("\n".join(lines) for lines in (table(2048), table(8192), parts()))
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def main() -> int:
    """Writes the page, or checks it."""
    made = text()
    if "--check" in sys.argv[1:]:
        same = PAGE.read_text(encoding="utf-8") == made
        print("docs/memory.md is", "up to date" if same else "not up to date: python tools/memory_page.py")
        return 0 if same else 1
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
