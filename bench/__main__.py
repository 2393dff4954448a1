"""`python -m bench [WORKLOAD ...]` measures; `python -m bench gate` finds regressions; `... gpu` fills a lease."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command line of the harness."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["gate"]:
        from bench.gate import main as gate

        return gate(given[1:])
    if given[:1] == ["gpu"]:
        from bench.gpu import main as gpu

        return gpu(given[1:])
    return measure(given)


def measure(given: Sequence[str]) -> int:
    """Runs workloads."""
    from bench.app import Options, run
    from bench.workloads import WORKLOADS

    known = parser().parse_args(given)
    if known.list:
        for workload in WORKLOADS.values():
            print(f"{workload.key:<11} {workload.about}")
        return 0
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in vars(known).items()}
    del values["list"]
    try:
        for path in run(Options(**values)):
            print(path)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of a measurement."""
    found = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    found.add_argument("workloads", nargs="*", help="A to G, generation; without any: those with a goal")
    found.add_argument("--seconds", type=float, default=60.0, help="of training for each run of a contestant")
    found.add_argument("--repeats", type=int, default=3, help="runs of each contestant, interleaved")
    found.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    found.add_argument(
        "--peers", action=argparse.BooleanOptionalAction, default=True, help="measure them, too"
    )
    found.add_argument(
        "--only", action="append", default=[], help="take only this contestant; may be given again"
    )
    found.add_argument("--models", action="append", default=[], help="a shape instead of the usual ones")
    found.add_argument("--dry-run", action="store_true", help="the whole plan in small: does everything run?")
    found.add_argument("--parity", action=argparse.BooleanOptionalAction, default=True, help="compare losses")
    found.add_argument("--profile", action="store_true", help="where Luthier's step goes, and nothing else")
    found.add_argument(
        "--sweep", action=argparse.BooleanOptionalAction, default=True, help="probe what was not probed yet"
    )
    found.add_argument(
        "--sweep-row",
        action="append",
        default=[],
        help="probe only this row, as trl-fp32-mb1; may be given again",
    )
    found.add_argument("--resweep", action="store_true", help="probe TRL's sweep again")
    found.add_argument("--sweep-seconds", type=float, default=10.0, help="of each row of the sweep")
    found.add_argument("--grace", type=float, default=240.0, help="seconds a process may take besides")
    found.add_argument("--resume", default="", help="a result that was cut short: make the runs it lacks")
    found.add_argument("--out", default="", help="folder for results instead of bench/results")
    found.add_argument("--list", action="store_true", help="name the workloads")
    return found


if __name__ == "__main__":
    sys.exit(main())
