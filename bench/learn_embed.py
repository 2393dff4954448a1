"""Does an embedding model find the right text more often than the model that it was made of?

    python -m bench.learn_embed [--steps 16] [--pooling mean]

A small real model learns that an instruction and the beginning of its answer belong together. Then each held-out
instruction looks for its own answer among those of all held-out rows: recall@1 is the share that finds it first, MRR
the mean of 1 / place. The model before training is judged with either pooling, and the better of the two counts. Rows:
the Alpaca demo of ../shared/data, or any JSON list of rows with `instruction`, `input` and `output`; of an answer the
first --words words, so that rows are short. Rows with the same instruction are left out but for the first.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import results
from bench.held_out import SHARED, HeldOut, findings, put_to, trained, write_rows

POOLINGS = ("last", "mean")


def related(path: Path, words: int, most_words: int = 40) -> Iterator[dict[str, str]]:
    """Instructions with the beginnings of their answers; those with a long instruction are left out."""
    seen: set[str] = set()
    for row in json.loads(path.read_text(encoding="utf-8")):
        asked = " ".join([row["instruction"], row.get("input") or ""]).strip()
        answer = " ".join(row["output"].split()[:words])
        if answer and asked not in seen and len(asked.split()) <= most_words:
            seen.add(asked)
            yield {"anchor": asked, "positive": answer}


def retrieval(model: HeldOut) -> dict[str, float]:
    """How well each query finds its own text among all of them."""
    import torch

    found = []
    with torch.no_grad():
        model.trainer.policy.eval()
        for batch in model.batches():
            values_QD = model.trainer.policy(batch.to(model.trainer.device)).cpu()
            unit_QD = torch.nn.functional.normalize(values_QD, dim=-1)
            found.append(torch.stack([unit_QD[0::2], unit_QD[1::2]]))  # a query, then its text
    query_MD, text_MD = torch.cat(found, 1)
    cosine_MM = query_MD @ text_MD.T
    # ties count against the query
    place_M = (cosine_MM >= cosine_MM.diagonal()[:, None]).sum(1)
    return {
        "recall@1": float((place_M == 1).double().mean()),
        "recall@10": float((place_M <= 10).double().mean()),
        "mrr": float((1 / place_M.double()).mean()),
        "texts": len(place_M),
    }


def config_of(known: argparse.Namespace, folder: Path, pooling: str, rows: str) -> dict[str, Any]:
    """A short LoRA run."""
    return {
        "model": known.model,
        "method": {"name": "embed", "pooling": pooling, "temperature": known.temperature},
        "data": {"path": rows, "max_length": 256, "max_drop_fraction": 1.0, "cache": False},
        "lora": {"rank": 16},
        "optim": {"lr": known.lr},
        "schedule": {"name": "cosine", "warmup_ratio": 0.1},
        "train": {
            "steps": known.steps,
            "tokens_per_step": known.tokens,
            "tokens_per_micro_batch": known.tokens,
        },
        "run": {"name": f"embed-{pooling}", "root": str(folder / "runs")},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 if the model does not beat the one that it was made of."""
    parser = argparse.ArgumentParser(prog="bench/learn_embed.py", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", default="demo:smollm2-135m")
    parser.add_argument("--data", type=Path, default=SHARED / "alpaca_en_demo.json")
    parser.add_argument("--pooling", choices=POOLINGS, default="mean")
    parser.add_argument("--temperature", type=float, default=0.05)
    parser.add_argument("--words", type=int, default=20, help="words of an answer")
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--tokens", type=int, default=2048, help="tokens a step")
    parser.add_argument("--held-out", type=int, default=150, help="rows to judge")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--out", type=Path, default=results.FOLDER, help="folder of the JSON")
    known = parser.parse_args(arguments)
    notes = findings("learn-embed", known)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = list(related(known.data, known.words))
        random.Random(0).shuffle(rows)
        unseen = write_rows(folder / "held-out.jsonl", rows[: known.held_out])
        learned = write_rows(folder / "train.jsonl", rows[known.held_out :])
        scratch = folder / "tokens"
        for pooling in POOLINGS:
            config = config_of(known, folder, pooling, learned)
            told = retrieval(put_to(config, unseen, scratch, learned=False))
            notes.keep(f"before, {pooling}", told)
            print(f"before, {pooling}: {told}", flush=True)
        config = config_of(known, folder, known.pooling, learned)
        steps = trained(config)["steps"]
        after = retrieval(put_to(config, unseen, scratch))
        notes.keep(f"after, {known.pooling}", after)
    before = [notes.found[f"before, {pooling}"] for pooling in POOLINGS]
    better = all(after[key] > max(one[key] for one in before) for key in ("recall@1", "mrr"))
    notes.write(steps=steps, better=better)
    table = Table("model, pooling", "texts", "recall@1", "recall@10", "MRR")
    for which, told in notes.found.items():
        figures = [f"{told[key]:.3f}" for key in ("recall@1", "recall@10", "mrr")]
        table.add_row(which, str(told["texts"]), *figures)
    Console(width=90).print(table)
    print(f"Better than before: {'yes' if better else 'NO'}. Written: {notes.path}")
    return 0 if better else 1


if __name__ == "__main__":
    sys.exit(main())
