"""How full are packs, how long does packing take, and how even are the ranks' shares?

    python bench/packing.py                 20 seeds of 10,000 rows, then 10 million rows, of each distribution
    python bench/packing.py --rows 100000   a smaller last part

`--out FOLDER` takes the JSON (bench/results otherwise); the status is 1 if a goal is missed. A fill below its goal
counts as reached where the rows allow no better: that is proved by a bound, not by a search.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.balance import CostModel, balance
from luthier.data.pack import pack
from luthier.runs.environment import describe_environment

RESULTS = Path(__file__).with_name("results")
CAPACITY, FEW, WORLD, PACKS_PER_STEP = 4096, 10_000, 8, 64
SECONDS_FEW, SECONDS_MANY = 0.05, 30.0

Lengths = NDArray[np.int64]


def chat(draw: np.random.Generator, rows: int) -> NDArray[np.float64]:
    """Median 500, sigma 0.9."""
    return draw.lognormal(np.log(500), 0.9, rows)


def long(draw: np.random.Generator, rows: int) -> NDArray[np.float64]:
    """Median 1,800, sigma 0.5: rows as long as half a pack."""
    return draw.lognormal(np.log(1800), 0.5, rows)


def awkward(draw: np.random.Generator, rows: int) -> NDArray[np.float64]:
    """Half of the rows a little longer than half a pack, so that no two of them fit together."""
    return np.concatenate([draw.normal(2300, 150, rows // 2), draw.normal(1400, 400, rows - rows // 2)])


GOALS: dict[Callable[[np.random.Generator, int], NDArray[np.float64]], float] = {
    chat: 0.99,
    long: 0.985,
    awkward: 0.895,
}


def fewest_packs(lengths: Lengths) -> int:
    """A number of packs that nothing can stay below (Martello and Toth, 1990)."""
    ordered = np.sort(lengths)
    totals = np.concatenate([[0], np.cumsum(ordered)])
    half = np.searchsorted(
        ordered, CAPACITY // 2, side="right"
    )  # from here on, a row needs a pack of its own
    least = np.unique(ordered[:half])
    # rows of at least `least`, but at most half a pack, find room beside longer rows only where these leave as much
    short = totals[half] - totals[np.searchsorted(ordered, least)]
    end = np.searchsorted(ordered, CAPACITY - least, side="right")
    room = (end - half) * CAPACITY - (totals[end] - totals[half])
    more = -(-(short - room) // CAPACITY)
    return max(-(-int(totals[-1]) // CAPACITY), len(ordered) - int(half) + max(0, *more.tolist(), 0))


def timed(lengths: Lengths) -> tuple[float, float, int]:
    """Fill, seconds and number of packs of packing once."""
    start = time.perf_counter()
    packs = pack(lengths, CAPACITY)
    seconds = time.perf_counter() - start
    return float(lengths.sum() / (len(packs) * CAPACITY)), seconds, len(packs)


def evenness(lengths: Lengths) -> dict[str, float]:
    """The costliest rank's cost over the mean one's, for steps of 64 packs on 8 ranks."""
    packs = pack(lengths, CAPACITY)
    # the shape of SmolLM2-135M: 30 layers, hidden size 576
    costs = packs.sums(CostModel.of(layers=30, attention_size=576, weights=134_000_000).of_rows(lengths))
    order = np.random.default_rng(0).permutation(len(costs))
    steps = [costs[order[i : i + PACKS_PER_STEP]] for i in range(0, len(costs), PACKS_PER_STEP)]
    in_turn, by_cost = [], []
    for step in steps[: max(1, len(steps) - 1)]:
        in_turn.append([step[rank::WORLD].sum() for rank in range(WORLD)])
        by_cost.append([step[packs].sum() for packs in balance(step, WORLD)])
    return {
        name: float(np.mean(np.max(sums, 1) / np.mean(sums, 1)))
        for name, sums in (("in_turn", np.array(in_turn)), ("by_cost", np.array(by_cost)))
    }


def measure(make: Callable[..., NDArray[np.float64]], seeds: int, rows: int) -> dict[str, Any]:
    """All figures of one distribution."""

    def draw(seed: int, number: int) -> Lengths:
        return np.clip(make(np.random.default_rng(seed), number), 16, CAPACITY).astype(np.int64)

    goal = GOALS[make]
    few = [draw(seed, FEW) for seed in range(seeds)]
    fills, seconds, numbers = zip(*map(timed, few), strict=True)
    below = [seed for seed, fill in enumerate(fills) if fill < goal]
    missed = [seed for seed in below if numbers[seed] > fewest_packs(few[seed])]
    fill, many_seconds, _ = timed(draw(0, rows))
    in_time = float(np.median(seconds)) <= SECONDS_FEW and many_seconds <= SECONDS_MANY
    return {
        "lengths": make.__name__,
        "goal": goal,
        "fill": {"min": min(fills), "median": float(np.median(fills))},
        "below_goal": below,
        "avoidable": missed,
        "seconds": {"min": min(seconds), "median": float(np.median(seconds)), "max": max(seconds)},
        "many": {"rows": rows, "fill": fill, "seconds": many_seconds},
        "costliest_rank": evenness(few[0]),
        "right": not missed and in_time,
    }


def line(found: dict[str, Any]) -> str:
    """One distribution for people."""
    fill, seconds, many, ranks = found["fill"], found["seconds"], found["many"], found["costliest_rank"]
    return (
        f"{found['lengths']:<8} fill {fill['min']:.2%} to {fill['median']:.2%} (goal {found['goal']:.1%}, "
        f"{len(found['below_goal'])} seeds below it, where {len(found['avoidable'])} might do better); "
        f"{FEW:,} rows in {seconds['median']:.3f} s, {many['rows']:,} in {many['seconds']:.1f} s; "
        f"costliest of {WORLD} ranks {ranks['in_turn'] - 1:+.1%} in turn, {ranks['by_cost'] - 1:+.2%} by cost"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 if a goal is missed."""
    parser = argparse.ArgumentParser(prog="bench/packing.py", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rows", type=int, default=10_000_000, help="of the large packing")
    parser.add_argument("--seeds", type=int, default=20, help="samples of 10,000 rows")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON")
    known = parser.parse_args(arguments)
    found = []
    for make in GOALS:
        found.append(measure(make, known.seeds, known.rows))
        print(line(found[-1]), flush=True)
    result = {
        "kind": "packing",
        "date": date.today().isoformat(),
        "machine": describe_environment(),
        "capacity": CAPACITY,
        "found": found,
    }
    known.out.mkdir(parents=True, exist_ok=True)
    path = known.out / f"packing-{result['date']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"Written: {path}")
    return 0 if all(one["right"] for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
