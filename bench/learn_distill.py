"""Does a smaller model learn more from a teacher than from the data alone?

    python -m bench.learn_distill [--layers 26] [--steps 20] [--rows 64]

The student is some of the teacher's own layers (the first, the last, and others evenly between) with its embeddings,
so it writes badly before training. It is trained twice, with LoRA, on the same few rows for as many steps: with the
loss of the data alone (`sft`), and with the teacher beside it (`distill`). Both are judged by the mean negative
log-likelihood of the answers of held-out rows, each at its own best evaluation. The share of the gap that distillation
closes is

    (sft - distill) / (sft - teacher)

and the goal is a half. Rows: the short ones of the Alpaca demo of ../shared/data, or of any JSON list of rows with
`instruction`, `input` and `output`; or the beginnings of the texts of a JSON Lines file (`--data …/c4_demo.jsonl`),
where every token is learned. With `--own` the teacher answers the instructions itself, at temperature 1, and the
answers that end are the rows, as when a small model is to do what a larger one does: then nothing but the teacher's
ways can be learned, and the teacher's loss is the least there is.
"""

import argparse
import json
import random
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import results
from bench.held_out import SHARED, findings, put_to, write_rows

GOAL = 0.5


def cut(teacher: str, layers: int, folder: Path) -> str:
    """Saves a model of some of the teacher's layers with the teacher's tokenizer; returns the folder."""
    import torch

    from luthier.models.load import load_model, load_tokenizer, resolve_model

    model: Any = load_model(resolve_model(teacher), torch.float32, torch.device("cpu"))
    stack = model.model.layers
    kept = [round(i * (len(stack) - 1) / max(1, layers - 1)) for i in range(layers)]
    model.model.layers = torch.nn.ModuleList(stack[i] for i in kept)
    layers_now: Any = model.model.layers
    for index, layer in enumerate(layers_now):
        layer.self_attn.layer_idx = index
    model.config.num_hidden_layers = layers
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [model.config.layer_types[i] for i in kept]
    model.save_pretrained(folder)
    load_tokenizer(teacher).save_pretrained(folder)
    return str(folder)


def short_rows(data: Path, words: int) -> list[dict[str, Any]]:
    """Rows of few words, in an order drawn once."""
    content = data.read_text(encoding="utf-8")
    if data.suffix == ".jsonl":
        texts = [json.loads(line)["text"].split(" ") for line in content.splitlines()]
        short = [{"text": " ".join(text[:words])} for text in texts if len(text) >= words]
    else:
        rows = json.loads(content)
        short = [row for row in rows if len(" ".join(map(str, row.values())).split()) <= words]
    random.Random(0).shuffle(short)
    return short


def answered(teacher: str, rows: Sequence[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    """So many of these instructions with answers that the teacher drew, of those that came to their end."""
    from luthier.models.inference import load_for_inference
    from luthier.serve.assistant import Assistant

    assistant, found = Assistant(load_for_inference(teacher, dtype="float32")), list[dict[str, Any]]()
    for start in range(0, len(rows), 64):
        asked = ["\n".join(filter(None, (r["instruction"], r["input"]))) for r in rows[start : start + 64]]
        ids = [assistant.prompt_ids(text) for text in asked]
        said = assistant.complete(ids, max_new_tokens=96, temperature=1.0, seed=start)
        pairs = [(text, one.text) for text, (one,) in zip(asked, said, strict=True) if one.finish == "eos"]
        found += [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
            for q, a in pairs
            if a.strip()
        ]
        if len(found) >= number:
            break
    return found[:number]


def write_files(known: argparse.Namespace, folder: Path) -> None:
    """Some rows to learn from, others held out."""
    wanted = known.held_out + known.rows
    rows = short_rows(known.data, known.words)
    if known.own:
        rows = answered(known.teacher, rows, wanted)
    if len(rows) < wanted:
        raise SystemExit(f"{known.data} has {len(rows)} rows of {known.words} words, not {wanted}")
    write_rows(folder / "held-out.jsonl", rows[: known.held_out])
    write_rows(folder / "train.jsonl", rows[known.held_out : wanted])


def config_of(known: argparse.Namespace, folder: Path, name: str, **sections: Any) -> dict[str, Any]:
    """A run over the same rows in the same order."""
    return {
        "model": str(folder / "student"),
        "data": {
            "path": str(folder / "train.jsonl"),
            "eval_path": str(folder / "held-out.jsonl"),
            "max_length": 256,
            "max_drop_fraction": 1.0,
            "cache": False,
        },
        "lora": {"rank": known.rank},
        "optim": {"lr": known.lr},
        "train": {
            "steps": known.steps,
            "tokens_per_step": known.tokens,
            "tokens_per_micro_batch": known.tokens,
        },
        "eval": {"samples": 0, "every": max(1, known.steps // 5)},
        "run": {"name": name, "root": str(folder / "runs")},
        **sections,
    }


def learn(config: dict[str, Any]) -> list[tuple[int, float]]:
    """Trains; the held-out negative log-likelihood by step."""
    import luthier
    from luthier.runs.metrics import read_metrics

    folder = luthier.train(config, say=lambda line: None).folder
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if row["kind"] == "eval"]
    return [(row["step"], row.get("nll_loss", row["loss"])) for row in rows]


def held_out_loss(config: dict[str, Any], folder: Path) -> float:
    """The negative log-likelihood of the held-out rows by a model as it is."""
    return put_to(config, config["data"]["eval_path"], folder / "tokens", learned=False).judge()["loss"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; 1 if less than a half of the gap is closed."""
    parser = argparse.ArgumentParser(
        prog="bench/learn_distill.py", description=str(__doc__).partition("\n")[0]
    )
    parser.add_argument("--teacher", default="demo:smollm2-135m")
    parser.add_argument("--layers", type=int, default=26, help="layers of the student")
    parser.add_argument("--data", type=Path, default=SHARED / "alpaca_en_demo.json")
    parser.add_argument("--own", action="store_true", help="the teacher answers the instructions itself")
    parser.add_argument("--rows", type=int, default=64, help="rows to learn from")
    parser.add_argument("--words", type=int, default=60, help="words of the longest row")
    parser.add_argument("--held-out", type=int, default=24)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens a step")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--alpha", type=float, default=0.9)
    parser.add_argument("--out", type=Path, default=results.FOLDER, help="folder of the JSON")
    known = parser.parse_args(arguments)
    notes = findings("learn-distill", known)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_files(known, folder)
        cut(known.teacher, known.layers, folder / "student")
        plain = config_of(known, folder, "sft", method="sft")
        taught = config_of(
            known, folder, "distill", method={"name": "distill", "alpha": known.alpha}, teacher=known.teacher
        )
        notes.keep("teacher", [(0, held_out_loss({**plain, "model": known.teacher}, folder))])
        notes.keep("student before", [(0, held_out_loss(plain, folder))])
        notes.keep("sft", learn(plain))
        notes.keep("distill", learn(taught))
    best = {which: min(loss for _, loss in losses) for which, losses in notes.found.items()}
    closed = (best["sft"] - best["distill"]) / (best["sft"] - best["teacher"])
    notes.write(closed=closed)
    table = Table("model", "held-out loss", "last", "at step")
    for which, losses in notes.found.items():
        step = min(losses, key=lambda pair: pair[1])[0]
        table.add_row(which, f"{best[which]:.4f}", f"{losses[-1][1]:.4f}", str(step))
    Console(width=100).print(table)
    print(f"closed: {closed:.0%} of the gap that sft leaves (goal: at least {GOAL:.0%})")
    return 0 if closed >= GOAL else 1


if __name__ == "__main__":
    sys.exit(main())
