"""LLaMA-Factory's `dataset_info.json`: each entry as a data set.

Where an entry names `columns`, its other columns are not read, as there.
"""

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.data.detect import MEANINGFUL, known_formats
from luthier.data.registries.registered import Registered, make_set
from luthier.errors import DataError

_SOURCES = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name", "file_name")
_OPTIONS = ("formatting", "ranking", "subset", "split", "folder", "num_samples", "columns", "tags")
_DEFAULTS = {"prompt": "instruction", "query": "input", "response": "output", "messages": "conversations"}
_COLUMNS = (
    *_DEFAULTS,
    *("history", "system", "tools", "images", "videos", "audios", "chosen", "rejected", "kto_tag"),
)
_FIELD_TAGS = {"role_tag": ("role", ("from", "role")), "content_tag": ("content", ("value", "content"))}
_ROLE_TAGS = {
    "user_tag": ("user", "human"),
    "assistant_tag": ("assistant", "gpt"),
    "observation_tag": ("tool", "observation"),
    "function_tag": ("tool_call", "function_call"),
    "system_tag": ("system", "system"),
}


def llamafactory_sets(info: dict[str, Any], names: Sequence[str], folder: Path) -> Registered:
    """The data sets of these names.

    Args:
        info: what `dataset_info.json` holds.
        names: the sets to take.
        folder: where the file lies; `file_name` is relative to it.

    Raises:
        DataError: if there is no such name, or an entry names what cannot be read here.
    """
    result = Registered()
    for name in names:
        if name not in info:
            near = difflib.get_close_matches(name, info, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(list(info)[:40])}"
            raise DataError(f"{folder / 'dataset_info.json'} has no data set {name}; {hint}")
        result.extend(_registered(name, info[name], folder))
    return result


def _registered(name: str, given: dict[str, Any], folder: Path) -> Registered:
    entry = {key: value for key, value in given.items() if value is not None}
    found = Registered()
    for key in entry:
        if key not in (*_SOURCES, *_OPTIONS):
            near = difflib.get_close_matches(key, (*_SOURCES, *_OPTIONS), 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            found.missing.append(f"{name}: `{key}` is no option of LLaMA-Factory{hint}")
    _check_types(name, entry)
    columns = _checked(name, entry, "columns", _COLUMNS)
    tags = _checked(name, entry, "tags", (*_FIELD_TAGS, *_ROLE_TAGS))
    format, mapped = _format(name, entry, columns)
    options: dict[str, Any] = {
        "path": _path(name, entry, folder),
        "format": format,
        "columns": _hidden(format, mapped)
        if columns is not None
        else {k: v for k, v in mapped.items() if k != v},
        "tags": _tags(tags or {}),
    }
    for key, own in (("subset", "subset"), ("split", "split"), ("num_samples", "rows")):
        if key in entry and (key, entry[key]) != ("split", "train"):
            options[own] = entry[key]
    if "num_samples" in entry:
        found.notes.append(
            f"{name}: num_samples draws {entry['num_samples']} rows with the run's seed; a set with fewer rows is not "
            "filled up by drawing some twice"
        )
    if "folder" in entry and not options["path"].startswith("hf:"):
        found.missing.append(f"{name}: `folder` is for hub sets; name the folder in file_name")
    found.sets.append(make_set(f"data set {name}", options))
    return found


def _check_types(name: str, entry: dict[str, Any]) -> None:
    """Raises DataError for an option whose value is of another kind than its name says."""
    for key in (*_SOURCES, "formatting", "subset", "split", "folder"):
        if not isinstance(entry.get(key, ""), str):
            raise DataError(f"data set {name}: `{key}` is {json.dumps(entry[key])}, not text")
    if not isinstance(entry.get("ranking", False), bool):
        raise DataError(f"data set {name}: `ranking` is {json.dumps(entry['ranking'])}; write true or false")


def _checked(name: str, entry: dict[str, Any], key: str, known: Sequence[str]) -> dict[str, str] | None:
    """The object `columns` or `tags` without nulls."""
    values = entry.get(key)
    if values is None:
        return None
    if not isinstance(values, dict):
        raise DataError(f"data set {name}: `{key}` must be an object of names")
    for own, value in values.items():
        if own not in known:
            near = difflib.get_close_matches(own, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise DataError(f"data set {name}: `{key}` has the unknown name {own}; {hint}")
        if not isinstance(value, str | None):
            raise DataError(f"data set {name}: `{key}.{own}` must be the name of a column")
    names = {own: value for own, value in values.items() if value}
    for own, value in names.items():
        if key == "columns" and (other := next(o for o, v in names.items() if v == value)) != own:
            raise DataError(
                f"data set {name}: `columns.{other}` and `columns.{own}` are both {value!r}; a column has one meaning"
            )
    return names


def _path(name: str, entry: dict[str, Any], folder: Path) -> str:
    """Where the rows are; as there, the hub comes first and the local file last."""
    if "hf_hub_url" in entry:
        inside = f"/{entry['folder'].strip('/')}" if entry.get("folder") else ""
        return f"hf:{entry['hf_hub_url']}{inside}"
    for key, hub in (("ms_hub_url", "ModelScope"), ("om_hub_url", "Modelers")):
        if key in entry:
            raise DataError(
                f"data set {name} is on {hub} only ({entry[key]}), which cannot be read from; download it and give "
                "its files in file_name"
            )
    if "script_url" in entry:
        raise DataError(
            f"data set {name} is made by a script ({entry['script_url']}), and no code from data sets is run; "
            "write its rows to a file and give that in file_name"
        )
    if "cloud_file_name" in entry:
        return str(entry["cloud_file_name"])
    if "file_name" in entry:
        return str(folder / str(entry["file_name"]))
    raise DataError(f"data set {name} has none of {', '.join(_SOURCES)}, so there are no rows")


def _format(name: str, entry: dict[str, Any], given: dict[str, str] | None) -> tuple[str, dict[str, str]]:
    """The format, and the names of its columns in this set."""
    formatting = entry.get("formatting", "alpaca")
    columns = _DEFAULTS | {c: c for c in ("chosen", "rejected")} if given is None else dict(given)
    ranking = bool(entry.get("ranking"))
    if formatting == "alpaca":
        ours = {"prompt": "instruction", "query": "input", "response": "output"}
        format = "preference" if ranking else "alpaca"
    elif formatting in ("sharegpt", "openai"):
        format = "sharegpt" if formatting == "sharegpt" else "messages"
        ours = {"messages": "conversations" if formatting == "sharegpt" else "messages"}
        columns.setdefault("messages", ours["messages"])
        format = "preference" if ranking else format
    else:
        raise DataError(f"data set {name}: formatting {formatting!r} is none of alpaca, sharegpt, openai")
    if "kto_tag" in columns:
        format, ours = "unpaired", {**ours, "kto_tag": "label"}
    if format == "alpaca" and "response" not in columns:
        format, ours = "text", {"prompt": "text"}
    if format == "preference":
        ours = {
            **{k: v for k, v in ours.items() if k != "response"},
            "chosen": "chosen",
            "rejected": "rejected",
        }
    shared = {c: c for c in ("history", "system", "tools", "images", "videos", "audios")}
    mapped = {own: columns[theirs] for theirs, own in {**shared, **ours}.items() if theirs in columns}
    if not mapped.keys() - shared.keys():
        raise DataError(f"data set {name}: `columns` names none that the formatting {formatting} learns from")
    known = next(one for one in known_formats() if one.name == format).own | MEANINGFUL
    return format, {own: theirs for own, theirs in mapped.items() if own in known}


def _hidden(format: str, mapped: dict[str, str]) -> dict[str, str]:
    """The names of columns, and all others of the format as not to be read."""
    own = next(one for one in known_formats() if one.name == format).own
    return {**dict.fromkeys(sorted(own - set(mapped)), "-"), **mapped}


def _tags(given: dict[str, str]) -> dict[str, str]:
    """Names in messages, without those that are understood anyway."""
    fields = {
        ours: given[theirs]
        for theirs, (ours, usual) in _FIELD_TAGS.items()
        if theirs in given and given[theirs] not in usual
    }
    roles = {
        ours: given[theirs]
        for theirs, (ours, usual) in _ROLE_TAGS.items()
        if theirs in given and given[theirs] not in (ours, usual)
    }
    return {**fields, **roles}
