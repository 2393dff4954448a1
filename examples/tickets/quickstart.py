"""The first run: write the data, fine-tune SmolLM2-135M-Instruct on this machine, merge, and say what to try.

    python examples/tickets/quickstart.py [KEY=VALUE]...

Everything lands in `runs/quickstart*`. Settings after the name change keys of run.yaml, as in `luthier train`.
"""

import sys
import time
from pathlib import Path

import luthier
from luthier.errors import LuthierError

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import make_tickets  # noqa: E402

EXPECTED_MINUTES = 11


def main(overrides: list[str]) -> int:
    """Runs the example and returns the exit status."""
    started = time.monotonic()
    data = HERE / "data"
    if status := make_tickets.main(["--out", str(data)]):
        return status
    print(
        f"\nFine-tuning on {data / 'train.jsonl'}; on two CPU cores this takes about {EXPECTED_MINUTES} minutes.\n"
    )
    paths = [
        f"data.path={data / 'train.jsonl'}",
        f"data.eval_path={data / 'test.jsonl'}",
        f"run.name={free_name()}",
    ]
    try:
        result = luthier.train(HERE / "run.yaml", [*paths, *overrides])
        merged = luthier.merge(result.folder)
    except LuthierError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes.")
    print(f"report:        {result.report}")
    print(f"adapter:       {result.trained}")
    print(f"merged model:  {merged}")
    print(f"talk to it:    .venv/bin/luthier chat {result.folder} --system {make_tickets.SYSTEM!r}")
    for name in ("json_valid", "field_f1", "exact_match"):
        print(f"{name.replace('_', ' ')}: {result.before[name]:.3f} -> {result.after[name]:.3f}")
    return 0


def free_name() -> str:
    """A name for the run that no earlier quickstart has taken."""
    taken = {path.name for path in Path("runs").glob("quickstart*")}
    return next(name for n in range(1, 10_000) if (name := f"quickstart-{n}") not in taken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
