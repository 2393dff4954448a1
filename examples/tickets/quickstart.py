"""The first run: write the data, fine-tune SmolLM2-135M-Instruct on this machine, write it as a GGUF file that is
proven to be the model that was trained, and show base, adapter and file side by side.

    python examples/tickets/quickstart.py [KEY=VALUE]...

Everything lands in `runs/quickstart*`. Settings after the name change keys of run.yaml, as in `luthier train`.
"""

import itertools
import sys
import time
from pathlib import Path

import luthier
from luthier.errors import LuthierError

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import make_tickets  # noqa: E402

EXPECTED_MINUTES = 13
PROMPTS = 4
"""Held-out e-mails that the file is compared with the trained model on."""
ROWS = 50
"""Held-out e-mails that the table at the end is about."""
METRICS = ("exact_match", "field_f1")
ANSWER_TOKENS = 64


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
        print("\nWriting a file for llama.cpp and Ollama, and comparing it with what was trained:\n")
        written = luthier.export_run(result.folder, "gguf:q8_0", prompts=PROMPTS)
        print(f"\nOn the first {ROWS} held-out e-mails:\n")
        print(side_by_side(result.folder, written.path, first_rows(data / "test.jsonl", ROWS)))
    except LuthierError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes. On all held-out e-mails:")
    for name in ("json_valid", "field_f1", "exact_match"):
        print(f"{name.replace('_', ' ')}: {result.before[name]:.3f} -> {result.after[name]:.3f}")
    print(f"\nreport:        {result.report}")
    print(f"adapter:       {result.trained}")
    print(f"merged model:  {merged}")
    print(f"GGUF file:     {written.path}")
    print(f"talk to it:    .venv/bin/luthier chat {result.folder} --system {make_tickets.SYSTEM!r}")
    return 0


def side_by_side(run: Path, file: Path, data: Path) -> str:
    """A table: size, speed and quality of the base model, of the adapter in it, and of the GGUF file. The same as
    `luthier evaluate RUN --data DATA --compare base adapter FILE` gives.
    """
    from luthier.evaluate.compare import laid_out, notes, table
    from luthier.evaluate.measure import measure
    from luthier.evaluate.variants import variants_of

    measured = [
        measure(one, [data], metric_names=METRICS, answer_tokens=ANSWER_TOKENS, folder=run / "evaluations")
        for one in variants_of(str(run), ["base", "adapter", str(file)])
    ]
    return "\n".join([laid_out(table(measured)), "", *notes(measured)])


def first_rows(data: Path, number: int) -> Path:
    """A file with the first rows of another one, beside it."""
    first = data.with_stem(f"{data.stem}-{number}")
    with data.open(encoding="utf-8") as lines:
        first.write_text("".join(itertools.islice(lines, number)), encoding="utf-8")
    return first


def free_name() -> str:
    """A name for the run that no earlier quickstart has taken."""
    taken = {path.name for path in Path("runs").glob("quickstart*")}
    return next(name for n in range(1, 10_000) if (name := f"quickstart-{n}") not in taken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
