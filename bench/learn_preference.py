"""Does preference training learn what is preferred, and nothing where there is nothing to learn?

    python -m bench.learn_preference [NAME ...] [--steps 16]

A small real model learns a preference whose right answer is known: of two answers to a question the one that begins
with "Gladly". Everything else in the answers is drawn alike for both, and held-out questions are about other things
than those that are learned. Accuracy is the share of held-out pairs whose chosen answer has the larger reward
(log π - log π_ref), whatever method trained the model; ties are wrong. Controls: labels that were drawn by a coin in
both halves of the data (about a half right), and a learning rate of zero (nothing moves). Last, a few steps on the DPO
and KTO demos of ../shared/data, which show only that such rows go through.
"""

import argparse
import math
import random
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import results
from bench.held_out import SHARED, findings, put_to, trained, write_rows

THINGS = """bridges candles cheese clocks clouds coffee comets deserts dictionaries drums engines ferns fire forests
glass gravity hammers honey ice islands kites lakes lanterns lemons magnets maps mirrors moss music olives owls paper
pepper pianos planets poems rain rivers roads rockets rope salt sand shadows ships silk snow soap stars steel storms
string sugar tea thunder tides trains trees tunnels violins volcanoes whales wheels wind windows wool""".split()  # noqa: SIM905
ASKED = ("Tell me about {}.", "What should I know about {}?", "Say a little about {}.", "Explain {} to me.")
TAILS = (
    "here is what I know about {}.",
    "let me say something about {}.",
    "{} are worth a closer look.",
    "people have long been curious about {}.",
    "there is a good deal to say about {}.",
)
LIKED, OTHERS = "Gladly", ("Well", "Right", "Listen", "Now", "Look", "So")
HELD_OUT_THINGS = 16
GOAL = 0.95
CHANCE = 0.15
"""How far from a half the accuracy of a coin may be."""


def pairs(things: Sequence[str], number: int, seed: int, *, coin: bool = False) -> Iterator[dict[str, str]]:
    """Pairs about these things; `coin`: which of the two answers is chosen is drawn, not known."""
    draw = random.Random(seed)
    for _ in range(number):
        thing = draw.choice(things)
        tails = [draw.choice(TAILS).format(thing) for _ in range(2)]
        chosen, rejected = f"{LIKED}, {tails[0]}", f"{draw.choice(OTHERS)}, {tails[1]}"
        if coin and draw.random() < 0.5:
            chosen, rejected = rejected, chosen
        yield {"prompt": draw.choice(ASKED).format(thing), "chosen": chosen, "rejected": rejected}


class Studio:
    """Where the runs lie, and what all of them have alike."""

    def __init__(self, folder: Path, model: str, steps: int, rows: int, held_out: int, lr: float):
        self.folder, self.model, self.steps, self.lr = folder, model, steps, lr
        old, new = THINGS[HELD_OUT_THINGS:], THINGS[:HELD_OUT_THINGS]
        self.files: dict[bool, tuple[str, str]] = {}
        for coin in (False, True):
            train = write_rows(folder / f"train-{coin}.jsonl", pairs(old, rows, 1, coin=coin))
            self.files[coin] = (
                train,
                write_rows(folder / f"held-out-{coin}.jsonl", pairs(new, held_out, 2, coin=coin)),
            )

    def config(self, name: str, method: str, data: Any, steps: int, **sections: Any) -> dict[str, Any]:
        """A short LoRA run."""
        return {
            "model": self.model,
            "method": method,
            "data": {"path": data, "max_length": 256, "max_drop_fraction": 1.0, "cache": False},
            "lora": {"rank": 16},
            "optim": {"lr": self.lr},
            "schedule": {"name": "constant", "warmup_steps": 2},
            "train": {"steps": steps, "tokens_per_step": 1024, "tokens_per_micro_batch": 1024},
            "eval": {"samples": 0},
            "run": {"name": name, "root": str(self.folder / "runs")},
            **sections,
        }

    def learn(self, name: str, method: str, *, coin: bool = False, lr: float | None = None) -> dict[str, Any]:
        """A run on made-up pairs, and how it judges those that it has not seen."""
        train, held_out = self.files[coin]
        steps = self.steps if lr is None else 3
        config = self.config(name, method, train, steps, optim={"lr": self.lr if lr is None else lr})
        told = trained(config)
        return {"method": method, **told, "held_out": self.judged(config, held_out)}

    def demo(self, name: str, method: str, set_name: str) -> dict[str, Any]:
        """A few steps on real rows."""
        config = self.config(
            name, method, f"{SHARED / 'dataset_info.json'}#{set_name}", max(2, self.steps // 4)
        )
        # a row, for KTO together with another's answer, has to fit into a micro-batch
        config["data"]["max_length"] = 512
        return {"method": method, **trained(config)}

    def judged(self, config: dict[str, Any], rows: str) -> dict[str, float]:
        """DPO's metrics of a trained model on pairs, with the model as it was before as reference."""
        return put_to({**config, "method": "dpo"}, rows, self.folder / "tokens").judge()


def experiments(
    studio: Studio,
) -> dict[str, tuple[Callable[[str], dict[str, Any]], Callable[[dict[str, Any]], bool]]]:
    """What can be run by name, and whether its outcome is what it should be."""

    def accurate(found: dict[str, Any]) -> bool:
        return found["held_out"]["rewards/accuracies"] >= GOAL

    def by_chance(found: dict[str, Any]) -> bool:
        return abs(found["held_out"]["rewards/accuracies"] - 0.5) <= CHANCE

    def unmoved(found: dict[str, Any]) -> bool:
        return found["held_out"]["rewards/margins"] == 0.0

    def went_through(found: dict[str, Any]) -> bool:
        """Only that each step had a loss and a gradient: a few steps on unlike rows show no falling loss."""
        return all(
            math.isfinite(step["loss"]) and 0 < step["grad_norm"] < math.inf for step in found["steps"]
        )

    made: dict[str, Any] = {}
    for method in ("dpo", "kto"):
        made[method] = lambda name, method=method: studio.learn(name, method), accurate
    for method in ("dpo", "kto"):
        made[f"{method}-shuffled"] = (
            lambda name, method=method: studio.learn(name, method, coin=True),
            by_chance,
        )
        made[f"{method}-zero"] = lambda name, method=method: studio.learn(name, method, lr=0.0), unmoved
    if SHARED.exists():
        for method in ("dpo", "kto"):
            made[f"{method}-demo"] = (
                lambda name, method=method: studio.demo(name, method, f"{method}_en_demo"),
                went_through,
            )
    return made


def row_of(name: str, found: dict[str, Any]) -> list[str]:
    """One line of the table."""
    first, last, held = found["steps"][0], found["steps"][-1], found.get("held_out", {})

    def told(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    return [
        name,
        str(len(found["steps"])),
        f"{first['loss']:.4f} -> {last['loss']:.4f}",
        told(last.get("rewards/accuracies")),
        told(last.get("rewards/margins")),
        told(held.get("rewards/accuracies")),
        told(held.get("rewards/margins")),
        "yes" if found["right"] else "NO",
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 if an outcome is not what it should be."""
    parser = argparse.ArgumentParser(
        prog="bench/learn_preference.py", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument(
        "names", nargs="*", help="dpo, kto, dpo-shuffled, dpo-zero, dpo-demo ...; all if none"
    )
    parser.add_argument("--model", default="demo:smollm2-135m")
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rows", type=int, default=256, help="pairs to learn from")
    parser.add_argument("--held-out", type=int, default=64, help="pairs to judge")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--out", type=Path, default=results.FOLDER, help="folder of the JSON")
    known = parser.parse_args(arguments)
    table = Table(
        "run", "steps", "loss", "accuracy", "margin", "held out: accuracy", "margin", "as it should be"
    )
    notes = findings("learn-preference", known)
    with tempfile.TemporaryDirectory() as folder:
        studio = Studio(Path(folder), known.model, known.steps, known.rows, known.held_out, known.lr)
        plan = experiments(studio)
        if unknown := set(known.names) - set(plan):
            parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(plan)}")
        for name in known.names or plan:
            run, right = plan[name]
            found = run(name)
            found["right"] = right(found)
            notes.keep(name, found)
            table.add_row(*row_of(name, found))
            print(" | ".join(row_of(name, found)), flush=True)
    Console(width=130).print(table)
    print(f"Written: {notes.path}")
    return 0 if all(found["right"] for found in notes.found.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
