"""Check a configuration without loading anything: every fault at once, or the resolved values."""

from pathlib import Path
from typing import Annotated

import typer

from luthier.config.data_section import SetSection
from luthier.config.load import load_with_places
from luthier.config.overrides import split_arguments
from luthier.config.paths import path_faults
from luthier.config.teacher_section import TeacherSection
from luthier.config.tree import Config
from luthier.config.tune_section import TuneSection
from luthier.errors import ConfigError, LuthierError


def command(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="RUN.YAML|KEY=VALUE", help="A config file, settings, or both.", show_default=False
        ),
    ] = None,
) -> None:
    """Checks a configuration and the files it names. Prints "ok" and what the run would do, or every fault.

    Settings behind the file are laid over it: luthier check run.yaml optim.lr=1e-4 lora.rank=32. They can
    also stand alone: luthier check model=Qwen/Qwen3-0.6B data=chats.jsonl. Ends with 2 if anything is wrong.
    """
    if not arguments:
        raise ConfigError("there is nothing to check; name a file, as in: luthier check run.yaml")
    file, overrides = split_arguments(arguments)
    config, places = load_with_places(file, overrides)
    faults = [*path_faults(config, places), *_name_faults(config)]
    if faults:
        raise ConfigError(faults)
    rows = describe(config)
    width = max(len(label) for label, _ in rows)
    print("ok")
    for label, text in rows:
        print(f"  {label:<{width}}  {text}")


def _name_faults(config: Config) -> list[str]:
    """Metrics and demo models that do not exist."""
    from luthier.evaluate import metrics
    from luthier.models import demo

    faults = []
    for name in config.eval.metrics:
        try:
            metrics.find(name)
        except ConfigError as error:
            faults.append(f"eval.metrics: {error}")
    for key, section in (
        ("model", config.model), ("teacher", config.teacher), ("reference", config.reference),
    ):  # fmt: skip
        name = section.name if section is not None else None
        if name is None or not name.startswith(demo.PREFIX):
            continue
        try:
            demo.find_demo(name)
        except LuthierError as error:
            faults.append(f"{key}.name: {error}")
    return faults


def describe(config: Config) -> list[tuple[str, str]]:
    """What a run would do, as a short table of label and text, with every default resolved."""
    schedule, train, compared = config.schedule, config.train, config.reference
    warmup = (
        f"{schedule.warmup_steps} steps"
        if schedule.warmup_steps is not None
        else f"{_warmup(config):.3g} of all steps"
    )
    return [
        ("model", f"{config.model.name} (dtype {config.model.dtype}, device {config.model.device})"),
        ("method", _named(config.method.name, config.method.options)),
        *([("teacher", _teacher(config.teacher))] if config.teacher else []),
        *([("reference", f"{compared.name} (dtype {compared.dtype})")] if compared.name else []),
        ("data", _data(config)),
        *_choices(config),
        ("weights", _weights(config)),
        ("optimizer", _named(config.optim.name, {"lr": config.learning_rate, **config.optim.options})),
        ("schedule", f"{schedule.name}, warm-up {warmup}"),
        (
            "length",
            f"{_length(config)}; {train.tokens_per_step:,} tokens a step in micro-batches of {train.micro_tokens:,}",
        ),
        ("evaluation", _evaluation(config)),
        ("checkpoints", _checkpoints(config)),
        ("results in", _folder(config)),
    ]


def _length(config: Config) -> str:
    train = config.train
    if train.max_tokens:
        return f"{train.max_tokens:,} tokens"
    return (
        f"{train.steps} steps" if train.steps else f"{train.epochs:g} epoch{'s' if train.epochs != 1 else ''}"
    )


def _data(config: Config) -> str:
    names = [_set(one) for one in config.data.all_sets]
    longer = config.data.overlong or "drop, plain text: split"
    return f"{', '.join(names)} (rows of at most {config.max_length:,} tokens, longer: {longer})"


def _set(section: SetSection) -> str:
    """A data set with the options that it has."""
    given = {
        name: getattr(section, name) for name in ("format", "split", "subset", "rows", "weight", "repeat")
    }
    defaults = {"weight": 1.0, "repeat": 1.0}
    told = [f"{name} {value:g}" if isinstance(value, int | float) else f"{name} {value}"
            for name, value in given.items() if value not in (None, defaults.get(name))]  # fmt: skip
    return f"{section.path} [{', '.join(told)}]" if told else section.path


def _teacher(section: TeacherSection) -> str:
    once = f", asked once for its {section.top_k} likeliest tokens" if section.top_k else ""
    return f"{section.name} (dtype {section.dtype}{once})"


def _choices(config: Config) -> list[tuple[str, str]]:
    """What was chosen about the data, where it is not the default."""
    data = config.data
    rows: list[tuple[str, str]] = []
    if data.mix != "concat":
        until = "the first set is" if data.mix == "first_exhausted" else "all sets are"
        rows.append(("mixed", f"until {until} used up, temperature {data.temperature:g}"))
    if data.learn != "answers":
        rows.append(
            ("learned", data.learn if isinstance(data.learn, str) else f"turns of {', '.join(data.learn)}")
        )
    if data.thinking is not None:
        rows.append(("thinking", "on" if data.thinking else "off"))
    left_out = data.clean.model_dump(exclude_defaults=True)
    if left_out:
        rows.append(("left out", ", ".join(_cleaned(name, value) for name, value in left_out.items())))
    return rows


def _cleaned(name: str, value: object) -> str:
    shown = "" if value is True else f" {', '.join(value) if isinstance(value, list | tuple) else value}"
    return f"{name.replace('_', ' ')}{shown}"


def _warmup(config: Config) -> float:
    ratio = config.schedule.warmup_ratio
    return 0.03 if ratio is None else ratio


def _named(name: str, options: dict[str, object]) -> str:
    values = ", ".join(f"{key} {value}" for key, value in options.items())
    return f"{name} ({values})" if values else name


def _given(tune: TuneSection) -> dict[str, object]:
    """The settings of a way to tune that say something."""
    values = {**tune.options, **tune.model_dump(include={"train", "freeze", "embeddings", "head", "norms"})}
    return {key: value for key, value in values.items() if value is not None and value != []}


def _weights(config: Config) -> str:
    lora = config.lora
    if config.peft is not None:
        return f"{_named(config.peft.type, config.peft.options)} by the library peft"
    rounded = f"; rounded to {_named(config.qat.name, config.qat.options)}" if config.qat else ""
    if config.tune is not None:
        return f"some are tuned: {_named(config.tune.name, _given(config.tune))}{rounded}"
    if lora is None:
        return f"all are tuned{rounded}"
    alpha = lora.alpha if lora.alpha is not None else 2 * lora.rank
    target = (
        "all linear layers"
        if lora.target == "all"
        else lora.target
        if isinstance(lora.target, str)
        else ", ".join(lora.target)
    )
    extra = f"; whole: {', '.join(lora.modules_to_save)}" if lora.modules_to_save else ""
    if lora.start is not None:
        return f"going on with the adapter of {lora.start}"
    layers = f" in layers {lora.layers}" if lora.layers is not None else ""
    begun = f", started by {lora.init}" if lora.init != "kaiming" else ""
    kind = "DoRA" if lora.dora else "LoRA"
    stored = f"; all else frozen in {_named(config.quant.name, config.quant.options)}" if config.quant else ""
    if config.quant and config.quant.embeddings:
        stored += f", embeddings and head in {config.quant.embeddings}"
    return f"{kind} of rank {lora.rank}, alpha {alpha:g}, on {target}{layers}{begun}{extra}{stored}{rounded}"


def _evaluation(config: Config) -> str:
    if not config.data.holds_out:
        return "none; give data.eval_rows or data.eval_path"
    share = f"{config.data.eval_fraction:.3g} of the rows" if config.data.eval_fraction else ""
    held_out = share or f"{config.data.eval_rows} rows"
    rows = ", ".join(config.data.eval_path or []) or f"{held_out} held out"
    every = f"every {config.eval.every} steps" if config.eval.every else "at the end"
    patience = f", stops after {config.eval.patience} without a better loss" if config.eval.patience else ""
    return f"{rows}, {every}{patience}"


def _checkpoints(config: Config) -> str:
    when = (
        f"every {config.checkpoint.every} steps"
        if config.checkpoint.every
        else "when interrupted and at the end"
    )
    return f"{when}; the newest {config.checkpoint.keep} are kept"


def _folder(config: Config) -> str:
    if config.run.name is None:
        return f"{config.run.root}/, in a folder named after method, model and time of start"
    folder = Path(config.run.root) / config.run.name
    taken = "; it exists: choose another run.name, or train with --resume" if folder.exists() else ""
    return f"{folder}{taken}"
