"""`luthier data`: what a data file holds, what becomes of each row, and what is learned from it."""

import json
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from luthier.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerFast

    from luthier.config.tree import Config
    from luthier.data.chat import ChatTemplate
    from luthier.data.ledger import Ledger
    from luthier.data.prepare import PreparedRow
    from luthier.data.sources import Row

app = typer.Typer(help="Look at data before training on it.", no_args_is_help=True)

_NO_MODEL = "no-model"


@app.callback()
def data() -> None:
    """Look at data before training on it."""


@app.command("inspect")
def inspect_command(
    path: Annotated[
        str, typer.Argument(help="A data file, a folder, or a run.yaml.", metavar="PATH|RUN.YAML")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Keys to change.", metavar="[KEY=VALUE]...", show_default=False)
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model whose template and tokenizer are used.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a row.")] = False,
    rows: Annotated[int | None, typer.Option(help="Look at the first so many rows only.", min=1)] = None,
) -> None:
    """What becomes of each row: format, ledger, lengths, and a sample with what is learned in colour.

    Without a model only what needs no tokenizer is shown. With --json: row, status, reason, ids, targets (1
    where the token is learned). Example: luthier data inspect chats.jsonl --model Qwen/Qwen3-0.6B
    """
    from luthier.data.sources import read_rows

    config = _config(path, overrides or [], model)
    template = _template(config) if config.model.name != _NO_MODEL else None
    prepared = _prepared(islice(read_rows([entry.path for entry in config.data.all_sets]), rows), template, config)
    if as_json:
        for one in prepared:
            print(json.dumps(_plain(one), ensure_ascii=False))
        return
    from rich.console import Console

    report(prepared, template, config, Console(soft_wrap=True))


def report(
    prepared: "Iterator[PreparedRow]", template: "ChatTemplate | None", config: "Config", console: "Console"
) -> None:
    """Prints what was found, for people."""
    from luthier.data.detect import detect
    from luthier.data.ledger import Ledger

    ledger, formats, lengths, num_targets = Ledger(), Counter[str](), list[int](), 0
    sample: PreparedRow | None = None
    with console.status("reading rows"):
        for one in prepared:
            ledger.add(one.status, one.row.where, one.reason)
            if one.row.record is not None and (format := detect(one.row.record)):
                formats[format.name] += 1
            if one.encoded is not None:
                sample = sample or one
                lengths.append(len(one.encoded.ids))
                num_targets += int(one.encoded.targets.sum())
    console.print(f"format: {', '.join(formats) or 'none was recognised'}", markup=False, highlight=False)
    _print_ledger(ledger, console)
    if template is None:
        console.print("Name a model (--model) to see lengths and what is learned.", markup=False)
    elif sample is not None:
        _print_lengths(lengths, num_targets, config, console)
        _print_sample(sample, template, console)


def _config(path: str, overrides: list[str], model: str | None) -> "Config":
    """The run that a YAML file describes, or one over the data that is named."""
    from luthier.config.load import config_from_dict, load_config

    if path.lower().endswith((".yaml", ".yml")):
        return load_config(Path(path), [*overrides, *([f"model.name={model}"] if model else [])])
    return config_from_dict({"model": {"name": model or _NO_MODEL}, "data": {"path": [path]}}, overrides)


def _template(config: "Config") -> "ChatTemplate":
    from luthier.data.chat import ChatTemplate

    source = None
    if config.data.template is not None:
        try:
            source = Path(config.data.template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as fault:
            raise ConfigError(f"data.template {config.data.template} cannot be read: {fault}") from fault
    return ChatTemplate(_tokenizer(config), source, config.data.template_args)


def _tokenizer(config: "Config") -> "PreTrainedTokenizerFast":
    from luthier.models.load import load_tokenizer

    return load_tokenizer(config.model.name, revision=config.model.revision, offline=config.offline)


def _prepared(
    rows: "Iterator[Row]", template: "ChatTemplate | None", config: "Config"
) -> "Iterator[PreparedRow]":
    from luthier.data.prepare import convert_rows, encode_rows

    if template is None:
        return convert_rows(rows)
    return encode_rows(rows, template, config.max_length, config.data.overlong or "drop")  # type: ignore[arg-type]


def _plain(one: "PreparedRow") -> dict[str, object]:
    encoded = one.encoded
    return {
        "row": one.row.number,
        "status": one.status,
        "reason": one.reason,
        "ids": None if encoded is None else encoded.ids.tolist(),
        "targets": None if encoded is None else encoded.targets.astype(int).tolist(),
    }


def _print_ledger(ledger: "Ledger", console: "Console") -> None:
    for number, line in enumerate(ledger.summary().splitlines()):
        console.print(line, style="bold" if number == 0 else "red", markup=False, highlight=False)


def _print_lengths(lengths: list[int], num_targets: int, config: "Config", console: "Console") -> None:
    import numpy as np

    from luthier.data.pack import pack

    tokens = np.array(lengths)
    parts = [
        f"{name} {int(np.percentile(tokens, at))}" for name, at in (("median", 50), ("90%", 90), ("99%", 99))
    ]
    console.print(f"tokens a row: {', '.join(parts)}, longest {tokens.max()}", highlight=False)
    share = num_targets / tokens.sum()
    console.print(f"learned: {num_targets} of {tokens.sum()} tokens ({share:.1%})", highlight=False)
    capacity = config.train.micro_tokens
    packs = len(pack(tokens, capacity))
    fill = tokens.sum() / (packs * capacity)
    console.print(f"packed: {packs} micro-batches of {capacity} tokens, {fill:.1%} full", highlight=False)


def _print_sample(sample: "PreparedRow", template: "ChatTemplate", console: "Console") -> None:
    from rich.text import Text

    assert sample.encoded is not None, "a sample has tokens"
    console.print(f"\n{sample.row.where}, learned text in green:", highlight=False, markup=False)
    text = Text()
    for piece, learned in template.pieces(sample.encoded):
        text.append(piece, style="bold green" if learned else "dim")
    console.print(text)
