"""torchtune's dataset builders, each as one of Luthier's sets."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from luthier.migrate.draft import Draft
from luthier.migrate.findings import Kind
from luthier.migrate.places import data_path
from luthier.migrate.readers import is_off, names, real, section, switch, text
from luthier.migrate.splits import Slice, read_slice


@dataclass(frozen=True)
class Builder:
    """What a dataset builder of torchtune reads when nothing else is said."""

    source: str | None = None
    format: str | None = None
    columns: dict[str, str] = field(default_factory=dict)
    learns_prompt: bool = False
    subset: str | None = None


_BUILDERS = {
    "alpaca_dataset": Builder("tatsu-lab/alpaca", "alpaca", learns_prompt=True),
    "alpaca_cleaned_dataset": Builder("yahma/alpaca-cleaned", "alpaca", learns_prompt=True),
    "slimorca_dataset": Builder("Open-Orca/SlimOrca-Dedup", "sharegpt"),
    "samsum_dataset": Builder(
        "Samsung/samsum", "prompt_completion", {"prompt": "dialogue", "completion": "summary"}
    ),
    "grammar_dataset": Builder(
        "liweili/c4_200m", "prompt_completion", {"prompt": "input", "completion": "output"}
    ),
    "cnn_dailymail_articles_dataset": Builder(
        "ccdv/cnn_dailymail", "text", {"text": "article"}, subset="3.0.0"
    ),
    "wikitext_dataset": Builder(
        "EleutherAI/wikitext_document_level", "text", {"text": "page"}, subset="wikitext-103-v1"
    ),
    "instruct_dataset": Builder(None, "prompt_completion", {"prompt": "input", "completion": "output"}),
    "chat_dataset": Builder(None, "sharegpt"),
    "text_completion_dataset": Builder(None, "text"),
    "SFTDataset": Builder(),
    "preference_dataset": Builder(None, "preference"),
    "hh_rlhf_helpful_dataset": Builder("RLHFlow/HH-RLHF-Helpful-standard", "preference"),
    "stack_exchange_paired_dataset": Builder(
        "lvwerra/stack-exchange-paired",
        "preference",
        {"prompt": "question", "chosen": "response_j", "rejected": "response_k"},
    ),
}
_REFUSED = {
    "gsm8k_dataset": "gives questions to a method that learns from rewards",
    "the_cauldron_dataset": "has images",
    "llava_instruct_dataset": "has images",
    "multimodal_chat_dataset": "has images",
    "vqa_dataset": "has images",
}
_NEEDLESS = {
    "packed": "rows are packed without seeing each other",
    "packing_strategy": "rows are packed without seeing each other",
    "split_across_pack": "plain text is cut into rows of data.max_length",
    "add_eos": "documents end with the tokenizer's end token",
    "add_bos": "documents begin as the tokenizer begins them",
}
_PLAIN = {
    "filter_fn": "rows are not left out by code",
    "filter_kwargs": "rows are not left out by code",
    "new_system_prompt": "system messages are those of the rows",
    "prompt_template": "the model's own chat template is used",
    "message_transform": "the format is seen from the columns",
    "model_transform": "the model's own tokenizer and chat template are used",
    "transform": "the format is seen from the columns",
    "partition": "all rows of the split are used",
}
_KEYS = (
    *("_component_", "source", "split", "subset", "name", "data_files", "data_dir", "column_map", "column"),
    *(
        "conversation_column",
        "conversation_style",
        "train_on_input",
        "masking_strategy",
        "weight",
        *_NEEDLESS,
        *_PLAIN,
    ),
)


def read_set(draft: Draft, place: str, entry: dict[str, Any]) -> dict[str, Any] | None:
    """The set that an entry means; None if it cannot be trained on."""
    name = str(entry.get("_component_", "")).rpartition(".")[2]
    if name in _REFUSED:
        draft.block(place, f"{name} {_REFUSED[name]}; Luthier learns from conversations and text")
        return None
    builder = _BUILDERS.get(name)
    if builder is None and "source" not in entry:
        draft.block(place, f"{name or 'it'} is no builder that is known here, and names no source")
        return None
    builder = builder or Builder()
    made: dict[str, Any] = {"path": _source(entry, builder)}
    subset = entry.get("name") or entry.get("subset") or builder.subset
    if subset:
        made["subset"] = text(subset)
    if "weight" in entry:
        made["weight"] = real(entry["weight"])
    if builder.format:
        made["format"] = builder.format
    columns = _columns(entry, builder)
    if columns:
        made["columns"] = columns
    if entry.get("conversation_style") == "openai":
        made["format"] = "messages"
        made.get("columns", {}).pop("conversations", None)
    _say(draft, place, entry, name)
    return {key: value for key, value in made.items() if value != {}}


def _source(entry: dict[str, Any], builder: Builder) -> str | list[str]:
    source = text(entry.get("source") or builder.source)
    files = entry.get("data_files")
    if files and source in ("json", "csv", "parquet", "text", "arrow"):
        found = [data_path(file) for file in names(files)]
        return found[0] if len(found) == 1 else found
    return data_path(source)


def _columns(entry: dict[str, Any], builder: Builder) -> dict[str, str]:
    given = section(entry.get("column_map") or {})
    ours = {"input": "prompt", "output": "completion"} if builder.format == "prompt_completion" else {}
    columns = dict(builder.columns)
    columns |= {ours.get(key, key): text(value) for key, value in given.items()}
    if builder.format == "alpaca":
        columns = {key: value for key, value in columns.items() if key != value}
    column = entry.get("column") or (entry.get("field") if builder.format == "text" else None)
    if column:
        columns["text"] = text(column)
    conversation = entry.get("conversation_column")
    if conversation:
        usual = "messages" if entry.get("conversation_style") == "openai" else "conversations"
        columns |= {usual: text(conversation)} if conversation != usual else {}
    return {key: value for key, value in columns.items() if key != value}


def _say(draft: Draft, place: str, entry: dict[str, Any], name: str) -> None:
    draft.find(place, Kind.MAPPED, name, "data")
    for key, value in entry.items():
        here = f"{place}.{key}"
        if key in _NEEDLESS:
            draft.needless(here, _NEEDLESS[key])
        elif key in _PLAIN and not is_off(value):
            draft.none(here, _PLAIN[key])
        elif key not in _KEYS:
            draft.unknown(here, _KEYS)


def learns_prompt(entry: dict[str, Any]) -> bool:
    """Whether an entry learns prompts too, by its own word or by its builder's default."""
    builder = _BUILDERS.get(str(entry.get("_component_", "")).rpartition(".")[2], Builder())
    if entry.get("masking_strategy") == "train_on_all":
        return True
    return switch(entry.get("train_on_input", builder.learns_prompt))


def split_of(entry: dict[str, Any], read: Callable[[str], Slice | None] = read_slice) -> Slice | None:
    """The split that an entry reads; None if it cannot be told."""
    return read(text(entry.get("split") or "train"))
