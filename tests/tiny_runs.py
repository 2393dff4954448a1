"""A tiny model on disk, chats to train it on, and runs over them."""

import contextlib
import json
import random
from pathlib import Path
from typing import Any

import luthier
from chat_samples import CHATML, byte_level
from luthier.config.tree import Config
from luthier.training.run import Result
from tiny_models import build

WORDS = "red green blue one two three small large cat dog bird house river stone".split()  # noqa: SIM905


def save_tiny_model(folder: Path, *, tied: bool = True, kind: str = "llama", **shape: Any) -> Path:
    """A random model (Llama-shaped) with a byte-level tokenizer and a ChatML template."""
    tokenizer = byte_level()
    tokenizer.chat_template = CHATML
    ends = {"vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
    model = build(kind, **{**ends, "max_position_embeddings": 512, "tie_word_embeddings": tied, **shape})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_chats(path: Path, num_rows: int = 40, seed: int = 0) -> Path:
    """Questions whose answer is their words in reverse: learnable, and of unequal lengths."""
    draw = random.Random(seed)
    with path.open("w") as file:
        for _ in range(num_rows):
            words = [draw.choice(WORDS) for _ in range(draw.randint(2, 8))]
            messages = [
                {"role": "user", "content": " ".join(words)},
                {"role": "assistant", "content": " ".join(reversed(words))},
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
    return path


def tiny_config(folder: Path, name: str = "run", **changes: Any) -> Config:
    """A short LoRA run with dropout, evaluation and checkpoints over what is in `folder` (made if absent)."""
    if not (folder / "model").exists():
        save_tiny_model(folder / "model")
        write_chats(folder / "train.jsonl")
        write_chats(folder / "test.jsonl", 10, seed=1)
    values: dict[str, Any] = {
        # in fp32 on every processor: most tests compare numbers more closely than bf16 could be
        "model": {"name": str(folder / "model"), "dtype": "float32"},
        "data": {
            "path": str(folder / "train.jsonl"),
            "eval_path": str(folder / "test.jsonl"),
            "cache": False,
        },
        "lora": {"rank": 4, "dropout": 0.1},
        "optim": {"lr": 1e-2},
        "train": {"epochs": 2, "tokens_per_step": 512, "tokens_per_micro_batch": 256},
        "eval": {"every": 4, "samples": 2, "answer_tokens": 8},
        "checkpoint": {"every": 3},
        "run": {"name": name, "root": str(folder / "runs")},
    }
    for key, value in changes.items():
        section = values.get(key)
        values[key] = {**section, **value} if isinstance(section, dict) and isinstance(value, dict) else value
    return luthier.check({key: value for key, value in values.items() if value is not ...})


def try_example(file: Path, model: Path, folder: Path, *changes: str, steps: int = 2) -> Result:
    """Trains an example of `examples/` as it stands for a few steps, with a tiny model in the model's place."""
    here = [f"model.name={model}", f"train.steps={steps}", f"run.root={folder}", "run.name=tried"]
    with contextlib.chdir(file.parent):
        return luthier.train(file.name, [*here, "data.cache=false", *changes], say=lambda line: None)
