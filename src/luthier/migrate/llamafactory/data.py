"""LLaMA-Factory's data settings: sets by their names in `dataset_info.json`, mixes, masks, templates."""

import json
from pathlib import Path
from typing import Any

from luthier.config.words import did_you_mean
from luthier.migrate.draft import Draft
from luthier.migrate.findings import Kind
from luthier.migrate.held_out import put_held_out_size
from luthier.migrate.readers import is_off, names, numbers, switch, text, whole

_MIXES = {
    "concat": "concat",
    "interleave_under": "first_exhausted",
    "interleave_over": "all_exhausted",
}
_REGISTRY = "dataset_info.json"


def put_data(draft: Draft, *, plain_text: bool) -> None:
    """Sets the section `data`. `plain_text`: the stage learns text, cut into blocks."""
    _put_sets(draft)
    _put_mix(draft)
    _put_held_out(draft)
    longest = draft.get("cutoff_len", whole, 2048)
    if "cutoff_len" in draft.given:
        draft.map("cutoff_len", "data.max_length", longest)
    else:
        draft.put("data.max_length", longest, f"the default of {draft.tool}")
    if not plain_text:
        note = f"{draft.tool} cuts prompt and answer of longer rows; here only the answer is cut"
        draft.put("data.overlong", "truncate_response", note)
    _put_masks(draft)
    _put_template(draft, plain_text)
    if "streaming" in draft.given:
        draft.map("streaming", "data.streaming", draft.get("streaming", switch, False))
    for key in ("packing", "neat_packing"):
        if key in draft.given:
            off = " (model.packing: false would not)" if is_off(draft.given[key]) else ""
            seen = (
                ""
                if "neat_packing" in draft.given or off
                else "; data.document_mask: false lets them, as there"
            )
            draft.needless(key, f"rows are packed without seeing each other{off}{seen}")


def _put_sets(draft: Draft) -> None:
    """Sets `data.path`, or `data.sets` where options belong to each set."""
    chosen = draft.get("dataset", names, [])
    if draft.put_rows("dataset"):
        for key in ("dataset_dir", "max_samples"):
            if key in draft.given:
                draft.needless(key, "other rows were given with --data")
        return
    if not chosen:
        draft.block("dataset", "names no rows to train on")
        return
    rows = draft.get("max_samples", whole)
    paths = [_path(draft, name) for name in chosen]
    if rows is None:
        draft.map("dataset", "data.path", _one(paths), _where(draft))
    else:
        draft.map("dataset", "data.sets", [{"path": path, "rows": rows} for path in paths], _where(draft))
        note = "rows are drawn with the seed; there, they are the first ones"
        draft.find("max_samples", Kind.NOTED, note, "data.sets")
    _check_names(draft, chosen)
    if "dataset_dir" in draft.given:
        draft.find("dataset_dir", Kind.MAPPED, "", "data.path" if rows is None else "data.sets")


def _path(draft: Draft, name: str) -> str:
    """What `data.path` says for a set's name."""
    folder = draft.get("dataset_dir", text, "data")
    if folder == "ONLINE":
        return f"hf:{name}"
    if folder.startswith("REMOTE:"):
        folder = folder.removeprefix("REMOTE:").rpartition("/")[2]
    return f"{folder.rstrip('/')}/{_REGISTRY}#{name}"


def _where(draft: Draft) -> str:
    folder = draft.get("dataset_dir", text, "data")
    if folder.startswith("REMOTE:"):
        repository = folder.removeprefix("REMOTE:")
        return f"download the hub's data set {repository} to {repository.rpartition('/')[2]}/ first"
    return ""


def _one(paths: list[str]) -> str | list[str]:
    return paths[0] if len(paths) == 1 else paths


def _check_names(draft: Draft, chosen: list[str]) -> None:
    """Names that a registry on this machine does not have, and sets of images."""
    file = Path(draft.get("dataset_dir", text, "data")) / _REGISTRY
    registry = _read(file)
    for name in chosen if registry is not None else []:
        assert registry is not None
        if name not in registry:
            draft.find("dataset", Kind.UNKNOWN, f"{file} has no {name}{did_you_mean(name, registry)}")
        elif any(column in registry[name].get("columns", {}) for column in ("images", "videos", "audios")):
            draft.block("dataset", f"{name} has images, video or sound; Luthier trains on text only")


def _read(file: Path) -> dict[str, Any] | None:
    try:
        read = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    usable = isinstance(read, dict) and all(isinstance(entry, dict) for entry in read.values())
    return read if usable else None


def _put_mix(draft: Draft) -> None:
    strategy = draft.get("mix_strategy", text, "concat")
    if "mix_strategy" in draft.given:
        if strategy in _MIXES:
            draft.map("mix_strategy", "data.mix", _MIXES[strategy])
        elif strategy == "interleave_once":
            draft.needless(
                "mix_strategy", "every row of every set comes once an epoch, shuffled (data.mix: concat)"
            )
        else:
            draft.find("mix_strategy", Kind.UNKNOWN, f"{strategy} is none of {', '.join(_MIXES)}")
    if "interleave_probs" not in draft.given:
        return
    shares = draft.get("interleave_probs", numbers, [])
    chosen = draft.get("dataset", names, [])
    if draft.rows or strategy not in ("interleave_under", "interleave_over"):
        draft.needless("interleave_probs", "has no effect with concat")
    elif len(shares) != len(chosen):
        draft.find("interleave_probs", Kind.UNKNOWN, f"{len(shares)} shares for {len(chosen)} sets; left out")
    else:
        _put_shares(draft, chosen, shares)


def _put_shares(draft: Draft, chosen: list[str], shares: list[float]) -> None:
    rows = draft.get("max_samples", whole)
    given = {} if rows is None else {"rows": rows}
    sets = [
        {"path": _path(draft, name), **given, "weight": float(share)}
        for name, share in zip(chosen, shares, strict=True)
    ]
    draft.values["data"].pop("path", None)
    note = "a set's share is its weight times its rows: divide by the rows if the sets differ in size"
    draft.map("interleave_probs", "data.sets", sets, note)


def _put_held_out(draft: Draft) -> None:
    chosen = draft.get("eval_dataset", names, [])
    if chosen:
        draft.map("eval_dataset", "data.eval_path", _one([_path(draft, name) for name in chosen]))
    elif "eval_dataset" in draft.given:
        draft.needless("eval_dataset", "is empty")
    put_held_out_size(draft, "val_size", "eval_dataset", has_sets=bool(chosen))


def _put_masks(draft: Draft) -> None:
    choices = {"train_on_prompt": "all", "mask_history": "last"}
    for key, learn in choices.items():
        if key in draft.given and draft.get(key, switch, False):
            draft.map(key, "data.learn", learn)
        elif key in draft.given:
            draft.needless(key, "is switched off")


def _put_template(draft: Draft, plain_text: bool) -> None:
    name = draft.get("template", text, "")
    if "template" in draft.given:
        own = "the model's own chat template is used; if it has none, give data.template a Jinja file"
        if plain_text:
            draft.needless("template", "plain text needs none")
        elif name.endswith("_nothink") and "enable_thinking" not in draft.given:
            note = f"{name}: the model's own template, told to write answers without thinking"
            draft.map("template", "data.thinking", False, note)
        else:
            draft.needless("template", f"{name}: {own}")
    thinking = draft.get("enable_thinking", switch)
    if thinking is not None:
        draft.map("enable_thinking", "data.thinking", thinking)
    keeps = draft.get("preserve_thinking", switch)
    if keeps is not None:
        note = "only templates that know this variable follow it"
        draft.map("preserve_thinking", "data.template_args", {"preserve_thinking": keeps}, note)
