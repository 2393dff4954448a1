"""What rounding to int4 costs a run's model, by how the codes are chosen: KL to what was trained, in one table.

    python -m bench.few_bits RUN [--forms compressed gptq awq] [--type int4] [--prompts 50] [--rows 64] [--peer]
                             [--scratch FOLDER] [--out FILE.json]

Each form is written as `luthier export` writes it, read back by Luthier's own reader and asked the run's held-out
prompts, none of which it was rounded with. With --peer llm-compressor's GPTQ rounds the same merged model with the same
rows in groups of the same size; that needs llmcompressor, which asks for older versions of transformers than Luthier's.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from luthier.config.load import load_config
from luthier.export.compressed.awq import by_awq
from luthier.export.compressed.gptq import by_gptq
from luthier.export.compressed.write import write_compressed
from luthier.export.from_run import merge_run
from luthier.export.job import Job
from luthier.export.verify.engines.compressed import InOwnReader
from luthier.export.verify.verdict import Trained, judge
from luthier.runs.environment import describe_environment
from luthier.runs.folder import RunFolder
from luthier.training.own_prompts import rows_by
from luthier.training.verify_export import ask_trained

METHODS: dict[str, Callable[..., Any] | None] = {"compressed": None, "gptq": by_gptq, "awq": by_awq}
PEER = "gptq of llm-compressor"


def main(arguments: list[str]) -> int:
    """Writes each form and compares it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--forms", nargs="*", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--type", default="int4")
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args(arguments)
    folder = RunFolder.open(given.run)
    config = load_config(folder.config)
    with TemporaryDirectory() if given.scratch is None else nullcontext(given.scratch) as place:
        merged = Path(place) / "merged"
        if not merged.is_dir():
            merged.parent.mkdir(parents=True, exist_ok=True)
            merge_run(Job(folder, config, lambda what: nullcontext(lambda *told: None)), merged, wide=True)
        rows = rows_by(config, merged)[: given.rows]
        trained = ask_trained(config, folder, given.type, "trained", given.prompts)
        found: dict[str, Any] = {
            "what": f"a run's model in {given.type} by how codes are chosen, against the trained model",
            "date": date.today().isoformat(),
            "model": Path(config.model.name).name,
            "asked": {"prompts": len(trained.said), "from": trained.prompts.source},
            "rounded_with": {"rows": len(rows), "tokens": sum(map(len, rows))},
            "machine": describe_environment(),
            "forms": {},
        }
        for name in [*given.forms, *([PEER] if given.peer else [])]:
            out, started = Path(place) / name.replace(" ", "-"), time.monotonic()
            write(name, merged, out, given.type, rows)
            seconds = round(time.monotonic() - started)
            found["forms"][name] = {"seconds": seconds, **measured(trained, out, given.type)}
            print(f"{name}: {found['forms'][name]}", flush=True)
            if given.out:
                given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def write(name: str, merged: Path, out: Path, kind: str, rows: Sequence[Sequence[int]]) -> None:
    """Fills `out` with the model by this form, or by the peer."""
    if name == PEER:
        by_peer(merged, out, kind, rows)
        return
    out.mkdir(exist_ok=True)
    method = METHODS[name]
    make = None if method is None else partial(method, rows=rows, progress=told)
    write_compressed(merged, out, kind, make=make)


def told(done: int, of: int, name: str) -> None:
    """How far it is."""
    print(f"\r{done} of {of}", end="" if done < of else "\n", file=sys.stderr, flush=True)


def by_peer(merged: Path, out: Path, kind: str, rows: Sequence[Sequence[int]]) -> None:
    """llm-compressor's GPTQ with its own settings, but for the size of groups, which is ours."""
    from datasets import Dataset
    from llmcompressor import oneshot  # pyright: ignore[reportMissingImports]
    from llmcompressor.modifiers.quantization import GPTQModifier  # pyright: ignore[reportMissingImports]

    ours = json.loads((out.parent / "gptq" / "config.json").read_text(encoding="utf-8"))
    groups = ours["quantization_config"]["config_groups"]
    data = Dataset.from_list([{"input_ids": list(row), "attention_mask": [1] * len(row)} for row in rows])
    oneshot(
        model=str(merged),
        dataset=data,
        recipe=GPTQModifier(config_groups=groups, ignore=["lm_head"]),
        max_seq_length=max(map(len, rows)),
        num_calibration_samples=len(rows),
        output_dir=str(out),
    )


def measured(trained: Trained, out: Path, kind: str) -> dict[str, Any]:
    """How far the folder is from what was trained, and how large."""
    verdict = judge(trained, out, kind, lambda: InOwnReader(out))
    distance = asdict(verdict.found)
    kept = ("mean_kl", "largest_kl", "top1", "clear", "clear_agreed", "spread", "same_text", "ties", "places")
    return {"bytes": verdict.size, **{key: distance[key] for key in kept}}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
