"""The first run: write the data, fine-tune SmolLM2-135M-Instruct on this machine, merge it, write a GGUF file for
llama.cpp, prove that both are the model that was trained, and say what to try.

    python examples/tickets/quickstart.py [KEY=VALUE]...

Everything lands in `runs/quickstart*`. Settings after the name change keys of run.yaml, as in `luthier train`.
"""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import luthier
from luthier.errors import LuthierError

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import make_tickets  # noqa: E402

if TYPE_CHECKING:
    from luthier.training.export_run import Exported

EXPECTED_MINUTES = 12
PROMPTS = 4
"""Held-out e-mails that the exported models are compared on."""


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
        print("\nWriting the model that programs load, and comparing it with what was trained:\n")
        exported = {
            to: luthier.export_run(result.folder, to, prompts=PROMPTS) for to in ("merged", "gguf:q8_0")
        }
    except LuthierError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(f"\nDone in {(time.monotonic() - started) / 60:.1f} minutes.")
    print(f"report:        {result.report}")
    print(f"adapter:       {result.trained}")
    print(f"merged model:  {exported['merged'].path}")
    print(f"GGUF file:     {exported['gguf:q8_0'].path}")
    print(f"talk to it:    .venv/bin/luthier chat {result.folder} --system {make_tickets.SYSTEM!r}")
    for name in ("json_valid", "field_f1", "exact_match"):
        print(f"{name.replace('_', ' ')}: {result.before[name]:.3f} -> {result.after[name]:.3f}")
    print("\n" + sizes(result.trained, exported))
    return 0


def sizes(adapter: Path, exported: "Mapping[str, Exported]") -> str:
    """A table: what takes how much room, and how far it lies from the trained model on held-out prompts."""
    taken = sum(file.stat().st_size for file in adapter.rglob("*") if file.is_file())
    lines = [f"{'form':<10}  {'size':>8}  {'mean KL':>8}  {'same token':>10}  same answers"]
    lines.append(f"{'adapter':<10}  {taken / 1e6:>5.0f} MB  {'':>8}  {'':>10}  (beside the base model)")
    for form, one in exported.items():
        row = f"{form:<10}  {one.size / 1e6:>5.0f} MB"
        if one.verdict is not None:
            found = one.verdict.found
            row += f"  {found.mean_kl:>8.1e}  {found.top1:>10.1%}  {found.same_text} of {found.prompts}"
        lines.append(row)
    return "\n".join(lines)


def free_name() -> str:
    """A name for the run that no earlier quickstart has taken."""
    taken = {path.name for path in Path("runs").glob("quickstart*")}
    return next(name for n in range(1, 10_000) if (name := f"quickstart-{n}") not in taken)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
