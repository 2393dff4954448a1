"""Does a reward model learn what is preferred, where it is known: the longer answer?

    python -m bench.learn_reward [NAME ...] [--steps 24]

A small real model gets a head of one number and learns pairs of which the longer answer is chosen. Answers are some
sentences, drawn one like the other for both, so that neither a sentence nor how an answer ends tells which is longer;
held-out pairs are about other things than those that are learned. `reward` has to judge at least 95 % of them rightly.
Controls: `shuffled`, whose labels were drawn by a coin in both halves of the data (about a half right), and `before`,
the model with a new head that has learned nothing, which is only told.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import results
from bench.held_out import findings, put_to, trained, write_rows
from bench.learn_preference import ASKED, CHANCE, GOAL, HELD_OUT_THINGS, THINGS

SENTENCES = (
    "People have long been curious about {}.",
    "There is a lot to say about {}.",
    "Most of us have seen {}.",
    "Some books are about {}.",
    "Not everyone likes {}.",
    "A few words on {} will do.",
    "We all know {}.",
    "Much has been written about {}.",
)
MOST = 4
"""Sentences of the longest answer."""
NAMES = ("before", "reward", "shuffled")


def pairs(things: Sequence[str], number: int, seed: int, *, coin: bool = False) -> Iterator[dict[str, str]]:
    """Pairs about these things; `coin`: which of the two answers is chosen is drawn, not known."""
    draw = random.Random(seed)
    for _ in range(number):
        thing = draw.choice(things)
        fewer, more = sorted(draw.sample(range(1, MOST + 1), 2))
        shorter, longer = (
            " ".join(sentence.format(thing) for sentence in draw.choices(SENTENCES, k=size))
            for size in (fewer, more)
        )
        if coin and draw.random() < 0.5:
            shorter, longer = longer, shorter
        yield {"prompt": draw.choice(ASKED).format(thing), "chosen": longer, "rejected": shorter}


def config_of(known: argparse.Namespace, folder: Path, name: str, rows: str) -> dict[str, Any]:
    """A short LoRA run."""
    return {
        "model": known.model,
        "method": {"name": "reward", "center": 0.01},
        "data": {"path": rows, "max_length": 256, "max_drop_fraction": 1.0, "cache": False},
        "lora": {"rank": 16},
        "optim": {"lr": known.lr},
        "schedule": {"name": "constant", "warmup_steps": 2},
        "train": {
            "steps": known.steps,
            "tokens_per_step": known.tokens,
            "tokens_per_micro_batch": known.tokens,
        },
        "run": {"name": name, "root": str(folder / "runs")},
    }


def run(name: str, known: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One experiment; `right` says whether its outcome is what it should be."""
    coin = name == "shuffled"
    learn, judge = THINGS[HELD_OUT_THINGS:], THINGS[:HELD_OUT_THINGS]
    rows = write_rows(folder / f"{name}.jsonl", pairs(learn, known.rows, 1, coin=coin))
    unseen = write_rows(folder / f"{name}-held-out.jsonl", pairs(judge, known.held_out, 2, coin=coin))
    config = config_of(known, folder, name, rows)
    told = {"steps": []} if name == "before" else trained(config)
    found = put_to(config, unseen, folder / "tokens", learned=name != "before").judge()
    right = {
        "before": True,
        "reward": found["accuracy"] >= GOAL,
        "shuffled": abs(found["accuracy"] - 0.5) <= CHANCE,
    }[name]
    return {**told, "held_out": found, "right": right}


def row_of(name: str, found: dict[str, Any]) -> list[str]:
    """One line of the table."""
    steps, held = found["steps"], found["held_out"]
    losses = f"{steps[0]['loss']:.4f} -> {steps[-1]['loss']:.4f}" if steps else "-"
    figures = [f"{held[key]:.3f}" for key in ("accuracy", "margin", "loss")]
    return [name, str(len(steps)), losses, *figures, "yes" if found["right"] else "NO"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 if an outcome is not what it should be."""
    parser = argparse.ArgumentParser(
        prog="bench/learn_reward.py", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("names", nargs="*", help=f"{', '.join(NAMES)}; all if none")
    parser.add_argument("--model", default="demo:smollm2-135m")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=768, help="tokens a step")
    parser.add_argument("--rows", type=int, default=320, help="pairs to learn from")
    parser.add_argument("--held-out", type=int, default=64, help="pairs to judge")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--out", type=Path, default=results.FOLDER, help="folder of the JSON")
    known = parser.parse_args(arguments)
    if unknown := set(known.names) - set(NAMES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    table = Table("run", "steps", "loss", "held out: accuracy", "margin", "loss", "as it should be")
    notes = findings("learn-reward", known)
    with tempfile.TemporaryDirectory() as folder:
        for name in known.names or NAMES:
            found = run(name, known, Path(folder))
            notes.keep(name, found)
            table.add_row(*row_of(name, found))
            print(" | ".join(row_of(name, found)), flush=True)
    Console(width=110).print(table)
    print(f"Written: {notes.path}")
    return 0 if all(found["right"] for found in notes.found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
