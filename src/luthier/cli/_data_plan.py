"""From what `luthier data` is given to the rows and what is to become of them, as in training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from luthier.config.tree import Config
    from luthier.data.chat import ChatTemplate
    from luthier.data.pipeline import Plan
    from luthier.data.sources import Row, Source

NO_MODEL = "no-model"


@dataclass
class Look:
    """What is looked at: a config, and the plan and source made of it."""

    config: "Config"
    plan: "Plan"
    source: "Source"
    tokenizer: "PreTrainedTokenizerFast | None"
    template: "ChatTemplate | None"
    notes: list[str] = field(default_factory=list)

    def rows(self, most: int | None) -> "Iterator[tuple[Row, float | None]]":
        """The rows of an epoch, at most so many, each with the share of the data that lies before it, if known."""
        for number, (row, position) in enumerate(islice(self.source.rows(), most)):
            yield row, self.source.progress(position) if number % 1000 == 999 else None


def config_of(arguments: Sequence[str], model: str | None, format: str | None) -> "Config":
    """The run that a YAML file describes, or one over the data that is named, with settings laid over it."""
    from luthier.config.load import config_from_dict, load_config

    paths = [one for one in arguments if not _is_setting(one)]
    settings = [one for one in arguments if _is_setting(one)]
    if not paths:
        raise ConfigError("no data is named; name a file, as in: luthier data inspect chats.jsonl")
    if len(paths) == 1 and _is_run_file(paths[0]):
        if format is not None:
            raise ConfigError("--format is for data files; in a run file give `format` in data.sets")
        return load_config(Path(paths[0]), [*settings, *([f"model.name={model}"] if model else [])])
    sets = [{"path": path, **({"format": format} if format else {})} for path in paths]
    data = {"sets": sets} if format else {"path": list(paths)}
    return config_from_dict({"model": {"name": model or NO_MODEL}, "data": data}, settings)


def look(config: "Config") -> Look:
    """Opens the data and loads tokenizer and template, if there is a model."""
    import luthier.methods
    from luthier.config.plugins import load_plugin
    from luthier.data.pipeline import Plan
    from luthier.data.registries import expand_registries
    from luthier.training.rows import recipe_of
    from luthier.training.template import build_template

    sets, notes = expand_registries(config.data.all_sets)
    tokenizer = template = recipe = None
    if config.model.name != NO_MODEL:
        tokenizer = tokenizer_of(config)
        template, no_template = build_template(config, tokenizer)
        recipe = recipe_of(config, tokenizer, template, no_template)
    plan = Plan(
        tuple(sets),
        recipe,
        load_plugin(luthier.methods, config.method.name).reads,
        clean=config.data.clean,
        mix=config.data.mix,
        temperature=config.data.temperature,
        seed=config.seed,
        offline=config.offline,
    )
    source = plan.open()
    notes = [*notes, *source.notes]
    if config.data.clean.eval_overlap is not None:
        plan = _with_eval_texts(plan, config, notes)
    return Look(config, plan, source, tokenizer, template, notes)


def tokenizer_of(config: "Config") -> "PreTrainedTokenizerFast":
    """The tokenizer of the config's model."""
    from luthier.models.load import load_tokenizer

    return load_tokenizer(
        config.model.name,
        revision=config.model.revision,
        offline=config.offline,
        new_tokens=config.model.new_tokens,
    )


def _with_eval_texts(plan: "Plan", config: "Config", notes: list[str]) -> "Plan":
    from luthier.data.clean import said
    from luthier.data.pipeline import Pipeline
    from luthier.data.registries import expand_registries

    if not config.data.eval_path:
        notes.append("data.clean.eval_overlap is looked at here only with data.eval_path")
        return replace(plan, clean=plan.clean.model_copy(update={"eval_overlap": None}))
    sets, _ = expand_registries(config.data.eval_sets)
    plain = type(plan.clean)()
    held = replace(plan, sets=tuple(sets), recipe=None, clean=plain, mix="concat", role="data.eval_path")
    rows = (row for row, _ in held.open().rows())
    texts = tuple(said(one.content) for one in Pipeline(held).prepared(rows) if one.content is not None)
    return replace(plan, eval_texts=texts)


def _is_setting(argument: str) -> bool:
    key, mark, _ = argument.partition("=")
    return bool(mark) and key.replace(".", "").replace("_", "").isalnum() and not Path(argument).exists()


def _is_run_file(path: str) -> bool:
    """A YAML file, unless it names data sets of its own behind a `#`."""
    return path.lower().endswith((".yaml", ".yml"))
