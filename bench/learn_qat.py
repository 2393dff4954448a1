"""Does training for Q4_0 (`qat: q4_0`) leave less to lose when the model is stored in it?

    python -m bench.learn_qat [NAME ...] [--steps 40] [--whole]

A small real model learns word problems (GSM8K) twice, on the same rows in the same steps: `tuned` plainly, `qat` with
its linear layers rounded to Q4_0. Both are written as GGUF files, read back, decoded and put to problems that they have
not seen. What is lost is measured from the plainly tuned model as it is (F32):

    ratio = (loss of qat in Q4_0 - loss of tuned) / (loss of tuned in Q4_0 - loss of tuned)      goal: at most 1/3
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import results
from bench.held_out import SHARED, findings, put_to, trained, write_rows

GOAL = 1 / 3
NAMES = ("tuned", "qat")
KINDS = {"tuned": ("f32", "q4_0"), "qat": ("q4_0",)}
"""The types that each run's model is written in and judged as."""


def problems(file: str, number: int) -> Iterator[dict[str, Any]]:
    """The first rows of the data set as chats."""
    with (SHARED / file).open(encoding="utf-8") as lines:
        for _, line in zip(range(number), lines, strict=False):
            row = json.loads(line)
            roles = (("user", row["question"]), ("assistant", row["answer"]))
            yield {"messages": [{"role": role, "content": text} for role, text in roles]}


def config_of(known: argparse.Namespace, folder: Path, name: str, rows: str) -> dict[str, Any]:
    """A short run, the same but for `qat`."""
    config: dict[str, Any] = {
        "model": {"name": known.model, "dtype": "float32"},
        "data": {
            "path": rows,
            "max_length": min(512, known.tokens),
            "max_drop_fraction": 1.0,
            "cache": False,
        },
        "optim": {"lr": known.lr},
        "schedule": {"name": "cosine", "warmup_ratio": 0.05},
        "train": {"steps": known.steps, "tokens_per_step": known.tokens},
        "run": {"name": name, "root": str(folder / "runs")},
    }
    if not known.whole:
        config["lora"] = {"rank": known.rank}
    if name == "qat":
        config["qat"] = {"name": "q4_0"}
    return config


def judged(config: dict[str, Any], kind: str, rows: str, scratch: Path) -> float:
    """Held-out loss of a run's model as a GGUF file of this type decodes."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig

    from luthier.cli.export import command
    from luthier.models.gguf import gguf_tokenizer
    from luthier.runs.folder import RunFolder

    folder = RunFolder(Path(config["run"]["root"]) / config["run"]["name"])
    file = folder.path / f"{kind}.gguf"
    command(folder.path, f"gguf:{kind}", file)
    unpacked = scratch / f"{folder.path.name}-{kind}"
    where = {"gguf_file": file.name, "local_files_only": True}
    decoded = AutoModelForCausalLM.from_pretrained(
        folder.path, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True), **where
    )
    if hasattr(decoded.config, "quantization_config"):
        delattr(decoded.config, "quantization_config")  # the weights written below are plain
    decoded.save_pretrained(unpacked)
    gguf_tokenizer(file).save_pretrained(unpacked)
    file.unlink()
    bare = {key: value for key, value in config.items() if key not in ("lora", "qat")}
    model = {**config["model"], "name": str(unpacked)}
    return put_to({**bare, "model": model}, rows, scratch / "tokens", learned=False).judge()["loss"]


def run(name: str, known: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One run, and the losses of its model in each type."""
    rows = write_rows(folder / "rows.jsonl", problems("gsm8k_train.jsonl", known.rows))
    unseen = write_rows(folder / "held-out.jsonl", problems("gsm8k_test.jsonl", known.held_out))
    config = config_of(known, folder, name, rows)
    steps = trained(config)["steps"]
    return {"steps": steps, "held_out": {k: judged(config, k, unseen, folder) for k in KINDS[name]}}


def ratio(found: dict[str, Any]) -> float | None:
    """What `qat` loses by being stored, as a share of what `tuned` loses; None until both have run."""
    if not set(NAMES) <= set(found):
        return None
    exact, stored = (found["tuned"]["held_out"][kind] for kind in ("f32", "q4_0"))
    return (found["qat"]["held_out"]["q4_0"] - exact) / (stored - exact)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 if the goal is missed."""
    parser = argparse.ArgumentParser(prog="bench/learn_qat.py", description=str(__doc__).partition("\n")[0])
    parser.add_argument("names", nargs="*", help=f"{', '.join(NAMES)}; all if none")
    parser.add_argument("--model", default="demo:smollm2-135m")
    parser.add_argument("--whole", action="store_true", help="train all weights instead of adapters")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens a step")
    parser.add_argument("--rows", type=int, default=2000, help="problems to learn from")
    parser.add_argument("--held-out", type=int, default=64, help="problems to judge")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", type=Path, default=results.FOLDER, help="folder of the JSON")
    known = parser.parse_args(arguments)
    if unknown := set(known.names) - set(NAMES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    notes = findings("learn-qat-whole" if known.whole else "learn-qat", known)
    table = Table("run", "steps", "loss of the last step", "held out: F32", "Q4_0")
    for name in known.names or NAMES:
        if name in notes.found:
            continue
        with tempfile.TemporaryDirectory() as folder:
            notes.keep(name, run(name, known, Path(folder)))
        print(name, notes.found[name]["held_out"], flush=True)
    for name, found in notes.found.items():
        losses = [f"{found['held_out'].get(kind, float('nan')):.4f}" for kind in ("f32", "q4_0")]
        table.add_row(name, str(len(found["steps"])), f"{found['steps'][-1]['loss']:.4f}", *losses)
    reached = ratio(notes.found)
    notes.write(ratio=reached, goal=GOAL)
    Console(width=110).print(table)
    print(
        f"What is lost, qat to tuned: {'-' if reached is None else f'{reached:.3f}'} (goal: at most {GOAL:.3f})"
    )
    print(f"Written: {notes.path}")
    return 0 if reached is None or reached <= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
