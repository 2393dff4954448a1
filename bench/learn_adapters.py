"""Does every adapter, and every way to store the base, learn? One short real run each.

    python -m bench.learn_adapters [NAME ...] [--steps 6] [--list]

The same small model learns the same answers (of examples/tickets: e-mails to JSON) by each kind of adapter: the LoRA
family's own (`lora/...`), those that the library peft registers (`peft/...`), and LoRA beside a base in few bits
(`quant/...`, each file in `kernels/quant/`).
The loss on held-out rows must be lower after than before; for a stored base, before is that of the stored base. What
was found is kept row by row, so a script that was cut short goes on where it was.
"""

import argparse
import importlib
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import results
from bench.held_out import findings, put_to, trained, write_rows
from bench.watch import ROOT

LORA: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "plus": {"plus_ratio": 16},
    "frozen-a": {"train_a": False},
    "ranks": {"ranks": {"down_proj": 32}},
    "last-10": {"layers": "last 10"},
    "dropout": {"dropout": 0.1},
}
"""Ways of the LoRA family; every file in `models/lora_init/` is added."""
PEFT: dict[str, dict[str, Any]] = {
    "adaption_prompt": {"adapter_len": 10, "adapter_layers": 30},
    "c3a": {"block_size": 64},
    "cartridge": {"num_virtual_tokens": 20},
    "frod": {"progressbar": False},
    "p_tuning": {"num_virtual_tokens": 20, "encoder_hidden_size": 128},
    "prefix_tuning": {"num_virtual_tokens": 20},
    "prompt_tuning": {"num_virtual_tokens": 20, "prompt_tuning_init": "SAMPLE_VOCAB"},
    "trainable_tokens": {"token_indices": [0, 1, 2]},
    "vblora": {"vector_length": 64, "num_vectors": 256},
}
"""Settings of types of peft that cannot do without, or whose own do not fit the model."""
RATES = {"lora": 5e-4, "peft": 2e-3, "quant": 5e-4}
OWN_RATES = {
    **dict.fromkeys(("lora/plus", "lora/lora_ga", "lora/pissa", "lora/pissa_fast"), 1e-4),
    **{"lora/olora": 5e-5, "peft/adalora": 1e-2, "peft/prompt_tuning": 3e-2, "peft/p_tuning": 3e-3},
    **{"peft/oft": 3e-4, "peft/boft": 3e-4, "peft/ia3": 1e-2, "peft/vera": 1e-2, "peft/road": 3e-3},
}
"""Of those that want another."""


def names() -> list[str]:
    """Every row there is, by what is installed."""
    from luthier.config.lora_section import known_inits
    from luthier.config.peft_types import REFUSED, peft_types
    from luthier.config.plugins import known_plugins

    inits = [f"lora/{name}" for name in known_inits() if name != "kaiming"]
    kinds = sorted((peft_types() or {}).keys() - REFUSED.keys())
    return [
        *(f"lora/{name}" for name in LORA),
        *inits,
        *(f"peft/{kind}" for kind in kinds),
        *(f"quant/{name}" for name in sorted(known_plugins()["quant"])),
    ]


def sections(name: str) -> dict[str, Any]:
    """What the config of a row has that others have not."""
    family, _, which = name.partition("/")
    rate = {"optim": {"lr": OWN_RATES.get(name, RATES[family])}}
    if family == "peft":
        return {"peft": {"type": which, **PEFT.get(which, {})}, **rate}
    if family == "quant":
        return {"lora": {"rank": 16}, "quant": {"name": which}, **rate}
    stored = {"quant": {"name": "nf4"}} if which == "loftq" else {}  # it starts from what storing lost
    return {"lora": {"rank": 16, **LORA.get(which, {"init": which})}, **stored, **rate}


def config_of(known: argparse.Namespace, folder: Path, name: str, rows: str) -> dict[str, Any]:
    """A short run."""
    return {
        "model": known.model,
        "data": {"path": rows, "max_length": 256, "max_drop_fraction": 1.0, "cache": False},
        "schedule": {"name": "cosine", "warmup_steps": 2},
        "train": {
            "steps": known.steps,
            "tokens_per_step": known.tokens,
            "tokens_per_micro_batch": known.tokens,
        },
        "run": {"name": name.replace("/", "-"), "root": str(folder / "runs")},
        **sections(name),
    }


def chats(known: argparse.Namespace) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Rows to learn from, and held-out ones."""
    sys.path.insert(0, str(ROOT / "examples" / "tickets"))
    learn, unseen = importlib.import_module("make_tickets").make_split(400, known.held_out, seed=0)
    return [row.to_messages() for row in learn], [row.to_messages() for row in unseen]


def run(name: str, known: argparse.Namespace, folder: Path, learn: str, unseen: str) -> dict[str, Any]:
    """One row: held-out loss before and after."""
    config, scratch = config_of(known, folder, name, learn), folder / "tokens"
    before = put_to(config, unseen, scratch, learned=False)
    loss_before = before.judge()["loss"]
    weights = sum(p.numel() for p in before.trainer.parameters)
    start = time.perf_counter()
    steps = trained(config)["steps"]
    seconds = time.perf_counter() - start
    after = put_to(config, unseen, scratch).judge()["loss"]
    return {
        "before": loss_before,
        "after": after,
        "lower": after < loss_before,
        "weights": weights,
        "lr": config["optim"]["lr"],
        "train": [step["loss"] for step in steps],
        "seconds": round(seconds, 1),
    }


def lines(found: dict[str, Any]) -> Iterator[list[str]]:
    """The table."""
    for name, row in found.items():
        if "failed" in row:
            yield [name, "-", "-", "-", "-", row["failed"][:60]]
            continue
        figures = [f"{row['before']:.4f}", f"{row['after']:.4f}"]
        yield [name, f"{row['weights']:,}", f"{row['lr']:g}", *figures, "yes" if row["lower"] else "NO"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 if a row did not lower the held-out loss."""
    parser = argparse.ArgumentParser(
        prog="bench/learn_adapters.py", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument(
        "names", nargs="*", help="rows such as peft/ia3, or families such as quant; all if none"
    )
    parser.add_argument("--model", default="demo:smollm2-135m")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=384, help="tokens a step")
    parser.add_argument("--held-out", type=int, default=8, help="rows to judge")
    parser.add_argument("--list", action="store_true", help="only say which rows there are")
    parser.add_argument("--out", type=Path, default=results.FOLDER, help="folder of the JSON")
    known = parser.parse_args(arguments)
    chosen = [n for n in names() if not known.names or n in known.names or n.partition("/")[0] in known.names]
    if known.list or not chosen:
        print("\n".join(chosen or names()))
        return 0
    notes = findings("learn-adapters", known)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        learn, unseen = (
            write_rows(folder / f"{part}.jsonl", rows)
            for part, rows in zip(("train", "held-out"), chats(known), strict=True)
        )
        for name in chosen:
            if "after" in notes.found.get(name, {}):
                continue
            try:
                notes.keep(name, run(name, known, folder, learn, unseen))
            except Exception as error:  # one row that cannot run must not keep the others from it
                notes.keep(name, {"failed": f"{type(error).__name__}: {error}"})
            print(" | ".join(next(lines({name: notes.found[name]}))), flush=True)
    table = Table("run", "trained", "lr", "held out: before", "after", "lower")
    for line in lines(notes.found):
        table.add_row(*line)
    Console(width=110).print(table)
    print(f"Written: {notes.path}")
    return 0 if all(row.get("lower") for row in notes.found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
