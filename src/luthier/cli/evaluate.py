"""Measure a run or a model on held-out rows: loss, perplexity, metrics of its answers, with intervals; or several."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.cli import _evaluate_pairs, _evaluate_tasks
from luthier.errors import ConfigError

if TYPE_CHECKING:
    from luthier.evaluate.compare import Measured
    from luthier.evaluate.pairwise import Outcome
    from luthier.evaluate.variants import Variant


def command(
    name: Annotated[
        str,
        typer.Argument(metavar="RUN_OR_MODEL", help="A run's folder, or what `model:` takes in a config."),
    ],
    variants: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[VARIANT...]",
            help="With --compare: base, adapter, trained, merged, GGUF files, folders. Absent: those that there are.",
        ),
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="File or folder of rows; may be given again.")
    ] = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="Metric of the answers, such as rouge_l or regex:^yes; may be given again. [exact_match]"
        ),
    ] = None,
    task: Annotated[
        list[str] | None, typer.Option(help="A task of lm-eval, by name or YAML file, instead of --data.")
    ] = None,
    task_chat: Annotated[
        bool, typer.Option("--task-chat", help="Put tasks through the chat template.")
    ] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Several variants side by side.")] = False,
    vote: Annotated[
        bool, typer.Option("--vote", help="Two variants: you say whose answers are better, blind.")
    ] = False,
    judge: Annotated[
        str | None, typer.Option(help="Two variants: this model says whose answers are better.")
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Answer only this many rows.", min=1)] = None,
    answer_tokens: Annotated[int, typer.Option(help="Longest answer in tokens.", min=1)] = 128,
    base: Annotated[bool, typer.Option("--base", help="A run's model as it was before training.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for each row's results. Absent: the run's folder, evaluations/."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Refuse the network.")] = False,
) -> None:
    """Measure a run or a model on held-out rows. What was killed goes on where it was when it is started again.

    Example: luthier evaluate runs/my-first --data test.jsonl --metric rouge_l --compare base adapter model-q8_0.gguf
    """
    from luthier.evaluate.variants import alone, variants_of

    if task:
        _evaluate_tasks.check(task, data, metric, compare or vote or judge is not None)
        return _evaluate_tasks.run(alone(name, trained=not base), task, rows, task_chat, as_json, offline)
    data = _checked(name, variants, data, metric, compare, base)
    chosen = variants_of(name, variants or ()) if compare else [alone(name, trained=not base)]
    folder = out or (Path(name) / "evaluations" if (Path(name) / "config.yaml").is_file() else None)
    _evaluate_pairs.check(compare, vote, judge, len(chosen), folder)
    measured = _measure(chosen, data, metric, rows, answer_tokens, folder, offline)
    votes = _evaluate_pairs.vote_on(measured, judge, folder, offline) if vote or judge else None
    _tell(measured, compare, as_json, votes)


def _checked(
    name: str,
    variants: list[str] | None,
    data: list[Path] | None,
    metric: list[str] | None,
    compare: bool,
    base: bool,
) -> list[Path]:
    """What can be known to be wrong before any model is looked for; returns the data."""
    from luthier.evaluate.metrics import find

    if not data:
        raise ConfigError("there are no rows to measure on; name them with --data FILE")
    if variants and not compare:
        raise ConfigError(f"to measure {', '.join([name, *variants])} side by side, add --compare")
    if compare and base:
        raise ConfigError("--base is one of the variants of --compare; write it as `--compare base trained`")
    for one in metric or ():
        find(one, columns=True)
    return data


def _measure(
    chosen: "Sequence[Variant]",
    data: list[Path],
    metric: list[str] | None,
    rows: int | None,
    answer_tokens: int,
    folder: Path | None,
    offline: bool,
) -> "list[Measured]":
    """Measures one variant after another."""
    from luthier.evaluate.measure import measure

    return [
        measure(
            one,
            data,
            metric_names=metric,
            num_rows=rows,
            answer_tokens=answer_tokens,
            folder=folder,
            offline=offline,
            progress=_progress(one.label),
        )
        for one in chosen
    ]


def _progress(label: str) -> Callable[[int, int], None] | None:
    """Tells in a terminal how many rows were answered."""
    if not sys.stderr.isatty():
        return None

    def progress(done: int, total: int) -> None:
        end = "\n" if done == total else ""
        print(f"\r{label}: answered {done} of {total}", end=end, file=sys.stderr, flush=True)

    return progress


def _tell(measured: "list[Measured]", compare: bool, as_json: bool, votes: "Outcome | None") -> None:
    from luthier.evaluate.compare import as_json as json_of
    from luthier.evaluate.compare import numbers_of

    if as_json:
        import json

        found: dict[str, object] = (
            {"variants": json_of(measured)} if compare else numbers_of(measured[0].found)
        )
        if votes is not None:
            found["votes"] = {"won": votes.wins, "lost": votes.losses, "ties": votes.ties, "rate": votes.rate}
        print(json.dumps(found))
    elif compare:
        _tell_table(measured)
        if votes is not None:
            print(_evaluate_pairs.sentence(measured, votes))
    else:
        _tell_one(measured[0])


def _tell_one(measured: "Measured") -> None:
    from luthier.evaluate.compare import engine_notes

    found = measured.found
    ranges = found.intervals

    def behind(label: str) -> str:
        return f" {ranges[label]}" if label in ranges else ""

    print(
        f"loss: {found.loss:.4f}{behind('loss')}  (perplexity {found.perplexity:.3f}{behind('perplexity')})"
    )
    if found.bits_per_byte is not None:
        print(f"bits per byte: {found.bits_per_byte:.4f}{behind('bits_per_byte')}")
    for label, value in found.values.items():
        print(f"{label.replace('_', ' ')}: {value:.3f}{behind(label)}")
    for note in engine_notes([measured]):
        print(note)
    if found.journal:
        print(f"each row: {found.journal}", file=sys.stderr)


def _tell_table(measured: "list[Measured]") -> None:
    from luthier.evaluate.compare import difference_table, laid_out, notes, table

    print(laid_out(table(measured)))
    if len(measured) > 1:
        print(f"\n{laid_out(difference_table(measured))}")
    print("\n" + "\n".join(notes(measured)))
