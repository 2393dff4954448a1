"""Axolotl's data settings: sets, held-out rows, masks, templates, limits."""

import re
from typing import Any

from luthier.migrate.axolotl.datasets import read_sets
from luthier.migrate.draft import Draft
from luthier.migrate.findings import Kind
from luthier.migrate.held_out import put_held_out_size
from luthier.migrate.readers import Misread, is_off, names, section, switch, text, whole

_OWN = "the model's own chat template is used; if it has none, give data.template a Jinja file"


def put_data(draft: Draft) -> None:
    """Sets the section `data`."""
    _put_sets(draft)
    _put_held_out(draft)
    longest = draft.get("sequence_len", whole, 512)
    if "sequence_len" in draft.given:
        draft.map("sequence_len", "data.max_length", longest)
    else:
        draft.put("data.max_length", longest, f"the default of {draft.tool}")
    _put_overlong(draft)
    _put_masks(draft)
    _put_template(draft)
    if "streaming" in draft.given:
        draft.map("streaming", "data.streaming", draft.get("streaming", switch, False))
    if draft.get("dataset_exact_deduplication", switch, False):
        draft.map("dataset_exact_deduplication", "data.clean.exact_duplicates", True)
    elif "dataset_exact_deduplication" in draft.given:
        draft.needless("dataset_exact_deduplication", "is switched off")
    if "shuffle_merged_datasets" in draft.given:
        if draft.get("shuffle_merged_datasets", switch, True):
            draft.needless("shuffle_merged_datasets", "rows are shuffled in every epoch")
        else:
            draft.none("shuffle_merged_datasets", "rows are shuffled in every epoch, never in file order")


def _put_sets(draft: Draft) -> None:
    given = [key for key in ("datasets", "pretraining_dataset") if key in draft.given]
    if draft.rows:
        draft.put_rows("")
        for key in given:
            draft.needless(key, "other rows were given with --data")
        return
    sets: list[dict[str, Any]] = []
    for key in given:
        found, settings = _read(draft, key)
        sets += found
        for name, value in settings.items():
            draft.put(f"data.{name}", value)
    if "pretraining_dataset" in given:
        draft.put("data.streaming", True, "pretraining_dataset is read as a stream")
    if not sets:
        if not draft.reasons:
            draft.block("datasets", "is absent, so there is nothing to train on")
    elif all(set(entry) == {"path"} for entry in sets):
        paths = [entry["path"] for entry in sets]
        draft.put("data.path", paths[0] if len(paths) == 1 else paths)
    else:
        draft.put("data.sets", sets)


def _read(draft: Draft, key: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The sets of a key; none, with a reason, if it is no list of sets."""
    draft.find(key, Kind.MAPPED, "", "data.eval_path" if key == "test_datasets" else "data.sets")
    try:
        return read_sets(draft, key)
    except Misread as error:
        draft.block(key, str(error))
        return [], {}


def _put_held_out(draft: Draft) -> None:
    tests: list[dict[str, Any]] = []
    if "test_datasets" in draft.given:
        tests, _ = _read(draft, "test_datasets")
        for place, entry in enumerate(tests):
            lost = ", ".join(sorted(set(entry) - {"path", "format"}))
            if lost:
                text_ = f"held-out rows are read as they are, without {lost}"
                draft.none(f"test_datasets.{place}", text_)
        if tests:
            paths = [entry["path"] for entry in tests]
            draft.put("data.eval_path", paths[0] if len(paths) == 1 else paths)
    put_held_out_size(draft, "val_set_size", "test_datasets", has_sets=bool(tests))


def _put_overlong(draft: Draft) -> None:
    plain = "pretraining_dataset" in draft.given
    strategy = draft.get("excess_length_strategy", text, "drop")
    if strategy == "truncate":
        note = "the end of the answer is cut; the prompt and the end of the turn stay whole"
        draft.map("excess_length_strategy", "data.overlong", "truncate_response", note)
    elif strategy == "raise":
        draft.map("excess_length_strategy", "data.overlong", "error")
    elif strategy == "drop":
        if "excess_length_strategy" in draft.given:
            draft.map("excess_length_strategy", "data.overlong", "drop")
        elif not plain:
            draft.put("data.overlong", "drop", f"the default of {draft.tool}")
    else:
        draft.find("excess_length_strategy", Kind.UNKNOWN, f"{strategy} is none of drop, truncate, raise")


def _put_masks(draft: Draft) -> None:
    if "roles_to_train" in draft.given:
        usual = {"human": "user", "gpt": "assistant", "model": "assistant", "observation": "tool"}
        roles = draft.get("roles_to_train", names, [])
        draft.map("roles_to_train", "data.learn", [usual.get(role, role) for role in roles])
    if draft.get("train_on_inputs", switch, False):
        draft.map("train_on_inputs", "data.learn", "all")
    elif "train_on_inputs" in draft.given:
        draft.needless("train_on_inputs", "is switched off")


def _put_template(draft: Draft) -> None:
    name, jinja = draft.get("chat_template", text), draft.get("chat_template_jinja", text)
    if jinja is not None:
        if re.search(r"\{[%{]|\n", jinja):
            draft.none(
                "chat_template_jinja",
                "is a template in the file itself; save it, and name it in data.template",
            )
        else:
            draft.map("chat_template_jinja", "data.template", jinja)
    if name == "jinja":
        draft.needless("chat_template", "chat_template_jinja says which one")
    elif name is not None and name.startswith("tokenizer_default"):
        draft.needless("chat_template", "the model's own chat template is used")
    elif name is not None:
        draft.needless("chat_template", f"{name}: {_OWN}")
    options = draft.get("chat_template_kwargs", section, {})
    if options:
        draft.map("chat_template_kwargs", "data.template_args", options)
    elif "chat_template_kwargs" in draft.given:
        off = is_off(draft.given["chat_template_kwargs"])
        draft.needless("chat_template_kwargs", "is empty" if off else "has no values")
