"""Measure a run or a model on held-out rows: loss, perplexity, bits per byte of plain text, metrics of its answers."""

import sys
from pathlib import Path
from typing import Annotated

import typer


def command(
    name: Annotated[
        str,
        typer.Argument(metavar="RUN_OR_MODEL", help="A run's folder, or what `model:` takes in a config."),
    ],
    data: Annotated[list[Path], typer.Option(help="File or folder of rows; may be given again.")],
    metric: Annotated[
        list[str] | None, typer.Option(help="Metric of the answers; may be given again. [exact_match]")
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Answer only this many rows.", min=1)] = None,
    answer_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.", min=1)] = 128,
    base: Annotated[bool, typer.Option("--base", help="A run's model as it was before training.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Refuse the network.")] = False,
) -> None:
    """Measure a run or a model on held-out rows.

    Example: luthier evaluate runs/my-first --data test.jsonl --metric exact_match --metric json_valid
    """
    from luthier.evaluate.task import evaluate
    from luthier.models.inference import load_for_inference

    def progress(done: int, total: int) -> None:
        print(f"\ranswered {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    loaded = load_for_inference(name, adapter=not base, offline=offline)
    found = evaluate(
        loaded,
        data,
        metric_names=metric,
        num_rows=rows,
        answer_tokens=answer_tokens,
        progress=progress if sys.stderr.isatty() else None,
    )
    if as_json:
        import json

        predicted = {"loss": found.loss, "perplexity": found.perplexity}
        if found.bits_per_byte is not None:
            predicted["bits_per_byte"] = found.bits_per_byte
        print(json.dumps({"rows": found.num_rows, **predicted, **found.values}))
        return
    print(f"loss: {found.loss:.4f}  (perplexity {found.perplexity:.3f})")
    if found.bits_per_byte is not None:
        print(f"bits per byte: {found.bits_per_byte:.4f}")
    for label, value in found.values.items():
        print(f"{label.replace('_', ' ')}: {value:.3f}")
