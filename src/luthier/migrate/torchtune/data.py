"""torchtune's data settings: sets, held-out rows, masks, limits."""

from typing import Any

from luthier.migrate.draft import Draft
from luthier.migrate.findings import Kind
from luthier.migrate.readers import is_off, whole
from luthier.migrate.torchtune.datasets import learns_prompt, read_set, split_of


def put_data(draft: Draft, longest: int | None) -> None:
    """Sets the section `data`. `longest`: the longest row in tokens, if the source sets one."""
    key = "dataset" if "dataset" in draft.given else "datasets"
    entries = [] if draft.put_rows(key) else _entries(draft, key)
    if not entries and not draft.rows:
        draft.block("dataset", "is absent, so there is nothing to train on")
        return
    if key == "dataset" and "datasets" in draft.given:
        draft.needless("datasets", "has no effect beside dataset")
    held_out = _entries(draft, "dataset_val")
    made = [(entry, read_set(draft, place, entry)) for place, entry in entries]
    shared = _shared_split(made, held_out)
    if shared:
        draft.put("data.eval_fraction", shared, "the share that dataset_val takes, chosen by content")
        draft.find("dataset_val", Kind.NOTED, "held out by the hash of the content", "data.eval_fraction")
    sets = []
    for (place, entry), (_, one) in zip(entries, made, strict=True):
        if one is not None:
            _put_split(draft, place, entry, one, whole_set=bool(shared))
            sets.append(one)
    _put_sets(draft, sets)
    if held_out and not shared:
        _put_held_out(draft, held_out)
    if longest is not None:
        draft.put("data.max_length", longest)
        draft.put(
            "data.overlong", "truncate_response", "torchtune cuts the end; here the end of the turn stays"
        )
    else:
        note = "torchtune cuts no row here (max_seq_len is null); rows beyond data.max_length are dropped"
        draft.note("data", note)
    if any(learns_prompt(entry) for _, entry in entries):
        note = "torchtune's builder learns the prompt too; leave this out to learn answers only"
        draft.put("data.learn", "all", note)


def _entries(draft: Draft, key: str) -> list[tuple[str, dict[str, Any]]]:
    """The sets of a key with their places: one, a list, or a ConcatDataset."""
    given = draft.given.get(key)
    if isinstance(given, dict) and isinstance(given.get("datasets"), list):
        given, key = given["datasets"], f"{key}.datasets"
    if isinstance(given, dict):
        return [(key, given)]
    if isinstance(given, list):
        return [(f"{key}.{number}", entry) for number, entry in enumerate(given) if isinstance(entry, dict)]
    return []


def _shared_split(
    made: list[tuple[dict[str, Any], dict[str, Any] | None]], held_out: list[tuple[str, dict[str, Any]]]
) -> float | None:
    """The held-out share, where rows to hold out are the end of the same set."""
    if len(made) != 1 or len(held_out) != 1:
        return None
    (entry, one), (_, other) = made[0], held_out[0]
    first, last = split_of(entry), split_of(other)
    same = entry.get("_component_") == other.get("_component_") and entry.get("source") == other.get("source")
    if one is None or not same or first is None or last is None or not last.at_end:
        return None
    fits = first.split == last.split and first.share is not None and last.share is not None
    return last.share if fits and abs((first.share or 0) + (last.share or 0) - 1) < 1e-9 else None


def _put_split(
    draft: Draft, place: str, entry: dict[str, Any], one: dict[str, Any], *, whole_set: bool
) -> None:
    part = split_of(entry)
    split = str(entry.get("split") or "train")
    if whole_set and part is not None:
        split = part.split
    elif part is None:
        draft.none(f"{place}.split", f"{split} cannot be told; the split train is used")
        return
    if split != "train":
        one["split"] = split


def _put_sets(draft: Draft, sets: list[dict[str, Any]]) -> None:
    flat = [
        {**one, "path": path}
        for one in sets
        for path in (one["path"] if isinstance(one["path"], list) else [one["path"]])
    ]
    if len(flat) == 1 and set(flat[0]) == {"path"}:
        draft.put("data.path", flat[0]["path"])
    elif flat:
        draft.put("data.sets", flat)


def _put_held_out(draft: Draft, held_out: list[tuple[str, dict[str, Any]]]) -> None:
    paths = []
    for place, entry in held_out:
        one = read_set(draft, place, entry)
        if one is None:
            continue
        paths += one["path"] if isinstance(one["path"], list) else [one["path"]]
        lost = sorted({"columns", "subset"} & set(one)) + (["split"] if "split" in entry else [])
        if lost:
            draft.none(place, f"held-out rows are read as they are, without {', '.join(lost)}")
    if paths:
        draft.put("data.eval_path", paths[0] if len(paths) == 1 else paths)


def put_evaluation(draft: Draft) -> None:
    """Sets `eval.every` from `run_val_every_n_steps`."""
    every = draft.get("run_val_every_n_steps", whole, 0)
    held_out = any(draft.has(f"data.{key}") for key in ("eval_path", "eval_fraction"))
    if "run_val_every_n_steps" not in draft.given:
        return
    if is_off(every) or not held_out:
        draft.needless("run_val_every_n_steps", "is off" if is_off(every) else "no rows are held out")
    else:
        draft.map("run_val_every_n_steps", "eval.every", every)
