"""The gate of CI: `make gate` fails when training became slower, larger, or wrong.

    speed      workload A in small, in units of the machine's own matrix products measured in between:
               at least 90 % of the value kept in gate.json
    memory     peak of the process: at most 5 % over the kept value
    faults     at most 1,000 minor page faults a step in one of the attempts: memory is kept, not given back and
               asked for again
    losses     fp32 losses within 1e-5 of the plain model's
    head       no tensor as large as the logits of all predictions

Speed and memory are compared with machines of the same class only; on a class that gate.json does not know, they
are printed and pass. Speed is not judged either where others kept the processor busy meanwhile, or where there was
no time to measure it: an alarm that neighbours can set off is soon ignored. What was not compared, and why, stands in
the last line, the gate's status: passed, passed in part, or failed. `python -m bench gate --update` keeps what it
measures. CI takes --slower 0.75, since one processor's name can stand for several kinds.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

from bench.contest import Contestant
from bench.prepare import cache, model_folder
from bench.results import machine_class, rounded
from bench.rows import make_rows
from bench.shapes import SHAPES
from bench.watch import run_process
from bench.workloads import WORKLOADS, Size

KEPT = Path(__file__).with_name("gate.json")
SLOWER, LARGER = 0.90, 1.05
MAX_FAULTS, MAX_DRIFT = 1000, 1e-5
SAMPLES, WARM_UP, STEPS, ATTEMPTS = 16, 2, 6, 3
"""Rows of a step, steps before the first attempt (in which memory grows, docs/measurements.md) and in each, and most
attempts. No row is seen twice."""
LIMIT = 240.0
"""Seconds after which the measurement is given up; what was measured until then is judged."""
DISTURBED = 0.25
"""Cores that others kept busy, from which on speed is not judged."""


def faults(found: dict[str, Any], kept: dict[str, Any] | None, slower: float = SLOWER) -> list[str]:
    """What is wrong with a measurement; `kept` is what was measured on this class of machine before.

    `slower` is the share of the kept speed that must be reached.
    """
    wrong: list[str] = []
    measured = "efficiency" in found
    if kept is not None and measured:
        least, most = slower * kept["efficiency"], LARGER * kept["peak_bytes"]
        if found["efficiency"] < least and not disturbed(found):
            wrong.append(
                f"speed: {found['efficiency']:.3f} of the machine's matrix products, at least {least:.3f} wanted "
                f"(kept: {kept['efficiency']:.3f} of {kept['date']})"
            )
        if found["peak_bytes"] > most:
            wrong.append(
                f"memory: peak {found['peak_bytes'] / 1e6:,.0f} MB, at most {most / 1e6:,.0f} MB wanted"
            )
    if measured and found["faults_per_step"] > MAX_FAULTS:
        wrong.append(f"page faults: {found['faults_per_step']:,.0f} a step, at most {MAX_FAULTS:,} wanted")
    if not found["loss_drift"] <= MAX_DRIFT:  # so that nan fails, too
        wrong.append(
            f"losses: {found['loss_drift']:.1e} from the plain model's, at most {MAX_DRIFT:.0e} wanted"
        )
    head = found["largest_tensor"]
    if head["largest"] >= head["forbidden"]:
        wrong.append(
            f"head: a tensor of {head['largest']:,} elements was made, as large as the logits of all predictions "
            f"({head['forbidden']:,})"
        )
    return wrong


def disturbed(found: dict[str, Any]) -> bool:
    """Whether others computed so much beside the measurement that its speed says little."""
    return found["others"] > DISTURBED


def not_compared(found: dict[str, Any], kept: dict[str, Any] | None, class_name: str) -> dict[str, str]:
    """What a measurement could not be judged on, and why."""
    if "efficiency" not in found:
        return dict.fromkeys(("speed", "memory", "page faults"), f"no speed within {LIMIT:.0f} s")
    if kept is None:
        return dict.fromkeys(("speed", "memory"), f"no values are kept for {class_name}")
    return {"speed": f"others kept {found['others']:.1f} cores busy"} if disturbed(found) else {}


def status(wrong: Sequence[str], left_out: dict[str, str]) -> str:
    """The gate's result in a line."""
    if wrong:
        return f"failed ({', '.join(fault.partition(':')[0] for fault in wrong)})"
    if left_out:
        reasons = ", ".join(dict.fromkeys(left_out.values()))
        return f"passed in part; not compared: {', '.join(left_out)} ({reasons})"
    return "passed"


def specification(wanted: float) -> dict[str, Any]:
    """What the measuring process is told."""
    num_rows = SAMPLES * (WARM_UP + STEPS * ATTEMPTS)
    small = _spec("SmolLM2-8-layers", num_rows=num_rows, samples=SAMPLES, longest=512)
    parity = _spec("tiny", num_rows=24, samples=8, longest=128) | {"max_steps": 3, "seconds": 60.0}
    head = _spec("tiny-wide", num_rows=4, samples=4, longest=1024, tokens=1000)
    attempts = {"warm_up": WARM_UP, "steps": STEPS, "attempts": ATTEMPTS, "seconds": 45.0}
    attempts |= {"wanted": wanted, "most_faults": MAX_FAULTS}
    return {**small, **attempts, "parity": parity, "head": head}


def _spec(shape_name: str, *, num_rows: int, samples: int, longest: int, tokens: int = 0) -> dict[str, Any]:
    shape, workload = SHAPES[shape_name], WORKLOADS["A"]
    if tokens:
        workload = replace(workload, lengths="")
    size = Size((shape_name,), samples)
    rows = make_rows(
        workload, size, tokens=tokens, num_rows=num_rows, vocabulary=shape.vocabulary, longest=longest
    )
    file = cache() / "rows" / f"gate-{shape_name}.npz"
    file.parent.mkdir(parents=True, exist_ok=True)
    rows.save(file)
    model = model_folder(shape, workload.rank, 2048)
    return {
        "shape": shape_name,
        "model": str(model),
        "rows": str(file),
        "samples": samples,
        "rank": workload.rank,
        "lr": workload.lr,
        "device": "cpu",
        "max_steps": 100,
        "options": {},
        "settings": {"model": {"name": str(model), "device": "cpu", "dtype": "float32"}},
    }


def measure(wanted: float) -> dict[str, Any]:
    """All figures of the gate, measured now.

    Without the figures of speed if there was no time for them. Raises RuntimeError if the measurement failed.
    """
    contestant = Contestant("gate", "gate", "the gate", peer=False)
    outcome = run_process(contestant.command(), specification(wanted), limit=LIMIT)
    found = {event["name"]: event["value"] for event in outcome.all("result")}
    if outcome.status == "failed" or "largest_tensor" not in found:
        raise RuntimeError(f"the gate could not be measured: {outcome.error}")
    return found | {"seconds": outcome.seconds, "others": outcome.others}


def read_kept(path: Path) -> dict[str, dict[str, Any]]:
    """The kept values by class of machine."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def class_of_this_machine() -> str:
    """The class and the processor's name: values of another processor would only make false alarms."""
    from luthier.runs.environment import describe_environment

    environment = describe_environment()
    return f"{machine_class(environment, 'cpu')} {environment['cpu']['model']}"


def keep(found: dict[str, Any], path: Path, class_name: str) -> None:
    """Writes what was measured as the value of this class of machine."""
    kept = read_kept(path)
    kept[class_name] = rounded(
        {
            "date": date.today().isoformat(),
            "efficiency": found["efficiency"],
            "peak_bytes": found["peak_bytes"],
            "tokens_per_second": found["tokens_per_second"],
        }
    )
    path.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def describe(found: dict[str, Any]) -> None:
    """Prints what was measured."""
    head = found["largest_tensor"]
    if "efficiency" in found:
        print(
            f"gate: {found['efficiency']:.3f} of the machine's matrix products "
            f"({found['tokens_per_second']:,.0f} tokens/s), peak {found['peak_bytes'] / 1e6:,.0f} MB, "
            f"{found['faults_per_step']:,.0f} page faults a step"
        )
    print(
        f"gate: losses within {found['loss_drift']:.1e}, largest tensor "
        f"{head['largest'] / head['forbidden']:.0%} of the logits, {found['seconds']:.0f} s"
    )


def main(arguments: Sequence[str] = ()) -> int:
    """Measures, compares, prints; 1 if something is wrong."""
    options = argparse.ArgumentParser(prog="python -m bench gate", description=__doc__)
    options.add_argument("--update", action="store_true", help="keep what is measured now")
    options.add_argument(
        "--slower",
        type=float,
        default=SLOWER,
        help="share of the kept speed to reach; lower on unlike machines",
    )
    chosen = options.parse_args(list(arguments))
    update, slower = chosen.update, chosen.slower
    class_name = class_of_this_machine()
    kept = read_kept(KEPT).get(class_name)
    # a value to keep is the best of all attempts, as one to compare may be
    found = measure(math.inf if update else slower * kept["efficiency"] if kept else 0.0)
    describe(found)
    if update and ("efficiency" not in found or disturbed(found)):
        print("gate: nothing is kept; measure again when nothing else runs", file=sys.stderr)
        return 1
    if update:
        keep(found, KEPT, class_name)
        print(f"gate: kept for {class_name}")
        return 0
    wrong = faults(found, kept, slower)
    for fault in wrong:
        print(f"gate: {fault}", file=sys.stderr)
    print(f"gate: {status(wrong, not_compared(found, kept, class_name))}")
    return 1 if wrong else 0
