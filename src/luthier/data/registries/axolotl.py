"""Axolotl's `datasets:` entries, each as a data set. A key that is null counts as absent, as there."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.data.conversation import REASONING_FIELDS, ROLES, SHAREGPT_ROLES
from luthier.data.registries.axolotl_types import WORDS_OF_THEIR_OWN, Reading, reading_of
from luthier.data.registries.registered import Registered, make_set
from luthier.errors import DataError

_GENERIC = ("json", "csv", "parquet", "arrow", "text")
"""Paths that name a kind of file; the files themselves stand in `data_files`."""
_NEEDLESS = {
    "ds_type": "the kind of a file is told by its name",
    "eot_tokens": "the ends of turns are found in the model's own template, and are learned",
    "preprocess_shards": "rows are read as they come",
    "train_on_eot": "the end of an answer's turn is always learned",
    "template_thinking_key": "reasoning is given to the template under every name that templates use",
    "split_thinking": "reasoning inside `<think>` is given to the template as it stands in the text",
    "conversation": "the model's own chat template is used",
    "step_separator": "steps are joined with line breaks",
}
_MISSING = {
    "chat_template": "one template holds for all data: the model's own, or data.template",
    "chat_template_jinja": "one template holds for all data: write it to a file and give that in data.template",
    "drop_system_message": "messages are learned as they are; remove the system messages from the rows",
    "max_completion_length": "set data.max_length and data.overlong",
    "message_field_training_detail": "whole messages can be weighted, not parts of one",
    "shards": "give `rows`, or a part of the split such as `train[:10%]`",
    "shards_idx": "give a part of the split, such as `train[10%:20%]`",
    "train_on_last_step_only": "every step is learned",
    "trust_remote_code": "no code from data sets is run; if the set needs it, convert it to files first",
}
_READ = {
    *("path", "type", "name", "split", "data_files", "revision", "field", "text_column", "weight"),
    *("field_messages", "field_tools", "field_system", "field_prompt", "field_completion", "field_label"),
    *("field_chosen", "field_rejected", "field_thinking", "message_field_role", "message_field_content"),
    *("message_field_training", "message_property_mappings", "roles", "roles_to_train", "train_on_eos"),
    *("chat_template_kwargs",),
}
_COLUMN_FIELDS = {
    "field_tools": "tools",
    "field_system": "system",
    "field_prompt": "prompt",
    "field_completion": "completion",
    "field_label": "label",
    "field_chosen": "chosen",
    "field_rejected": "rejected",
}
_MESSAGE_FIELDS = {
    "role": "role",
    "content": "content",
    "tool_calls": "tool_calls",
    "reasoning_content": "reasoning",
    "thinking": "reasoning",
    "train": "train",
    "weight": "weight",
}


def axolotl_sets(entries: Any, rl: str | None = None) -> Registered:
    """The data sets of a list of `datasets:` entries.

    Args:
        entries: the list, as YAML gives it.
        rl: Axolotl's key of that name, which tells what types such as `chatml.argilla` mean.

    Raises:
        DataError: if an entry has no path, or a type whose rows cannot be read.
    """
    if isinstance(entries, Mapping | str):
        entries = [entries]
    if not isinstance(entries, list):
        raise DataError("Axolotl's datasets must be a list of entries, each with a `path`")
    result, settings = Registered(), []
    for number, entry in enumerate(entries):
        given = {"path": entry} if isinstance(entry, str) else entry
        if not isinstance(given, Mapping):
            raise DataError(f"datasets[{number}] is no entry with a `path`")
        found = _Entry(number, {k: v for k, v in given.items() if v is not None}, rl).registered()
        settings.append(found.settings)
        result.extend(found)
    settle(result, settings, entries)
    return result


def settle(result: Registered, settings: Sequence[dict[str, Any]], entries: Sequence[Any]) -> None:
    """Takes out settings that hold for all data and are not the same for every entry; `settings` are those of each."""
    usual = {"learn": ["assistant"], "template_args": {}}
    keys = {"learn": "roles_to_train", "template_args": "chat_template_kwargs"}
    for name in [name for name in usual if name in result.settings]:
        values = [own.get(name, usual[name]) for own in settings]
        if any(value != values[0] for value in values):
            del result.settings[name]
            shown = "; ".join(
                f"{entry if isinstance(entry, str) else entry['path']}: {json.dumps(value)}"
                for entry, value in zip(entries, values, strict=True)
            )
            result.missing.append(
                f"{keys[name]} has no counterpart where data sets differ in it ({shown}); data.{name} holds for all "
                "data, so train on them one after another, or mark messages with `train`"
            )


class _Entry:
    """One entry, turned key by key."""

    def __init__(self, number: int, given: dict[str, Any], rl: str | None):
        self.given, self.found = given, Registered()
        if not isinstance(given.get("path"), str):
            raise DataError(f"datasets[{number}] has no `path`")
        self.where = f"datasets[{number}] ({given['path']})"
        self.reading = self._reading(given.get("type", ""), rl)

    def registered(self) -> Registered:
        """The data sets of the entry: several where it names several files."""
        self._keys()
        options: dict[str, Any] = {
            "format": self.reading.format,
            "columns": self._columns(),
            "tags": self._tags(),
            "subset": self._text("name"),
            "split": self._split(),
            "weight": self.given.get("weight"),
        }
        self._learned()
        if self.reading.note:
            self.found.notes.append(f"{self.where}: {self.reading.note}")
        self.found.sets = [make_set(self.where, {"path": path, **options}) for path in self._paths()]
        return self.found

    def _reading(self, kind: Any, rl: str | None) -> Reading:
        if isinstance(kind, Mapping):
            return self._user_defined({key: value for key, value in kind.items() if value is not None})
        if not isinstance(kind, str):
            raise DataError(f"{self.where}: `type` must be a name")
        for name, reason in WORDS_OF_THEIR_OWN.items():
            if kind.split(":")[0] == name or kind.startswith(f"{name}."):
                raise DataError(f"{self.where}: the type {kind} cannot be read: {reason}")
        reading = reading_of(kind, rl)
        if reading is None:
            raise DataError(
                f"{self.where}: the type {kind} is not known here; it may be code of its own. Convert its rows to a "
                "format of Luthier, such as messages"
            )
        style = kind.partition(":")[2]
        return Reading(
            reading.format, reading.columns, reading.note or (style and f"the style {style} is not used")
        )

    def _user_defined(self, kind: dict[str, Any]) -> Reading:
        names = {f"field_{name}": name for name in ("system", "instruction", "input", "output")}
        columns = {ours: kind[key] for key, ours in names.items() if key in kind and kind[key] != ours}
        for key in ("format", "no_input_format", "system_format", "system_prompt"):
            if kind.get(key):
                self.found.missing.append(
                    f"{self.where}: type.{key}: rows are written by the model's chat template, not by this text"
                )
        unknown = sorted(
            set(kind) - set(names) - {"format", "no_input_format", "system_format", "system_prompt", "field"}
        )
        self.found.missing += [f"{self.where}: type.{key} is not known" for key in unknown]
        return Reading("alpaca", columns)

    def _keys(self) -> None:
        """Says what has no counterpart, and what is no key of Axolotl at all."""
        for key, value in self.given.items():
            if key in _NEEDLESS:
                self.found.notes.append(f"{self.where}: {key} is not needed: {_NEEDLESS[key]}")
            elif key in _MISSING and value is not False:
                self.found.missing.append(f"{self.where}: {key} has no counterpart: {_MISSING[key]}")
            elif key not in _READ and key not in _MISSING:
                near = difflib.get_close_matches(key, [*_READ, *_NEEDLESS, *_MISSING], 1)
                hint = f"; did you mean {near[0]}?" if near else ""
                self.found.missing.append(f"{self.where}: `{key}` is not known{hint}")

    def _columns(self) -> dict[str, str]:
        columns = dict(self.reading.columns)
        if self.reading.format == "sharegpt":
            columns["conversations"] = self._text("field_messages") or "messages"
        elif "field_messages" in self.given:
            columns["conversations"] = self.given["field_messages"]
        if self.reading.format == "text" and (own := self._text("field") or self._text("text_column")):
            columns["text"] = own
        for key, ours in _COLUMN_FIELDS.items():
            if key in self.given:
                columns[ours] = self.given[key]
        return {ours: own for ours, own in columns.items() if ours != own}

    def _tags(self) -> dict[str, str]:
        fields = {"role": self._text("message_field_role"), "content": self._text("message_field_content")}
        fields["train"] = self._text("message_field_training")
        if (thinking := self._text("field_thinking")) not in REASONING_FIELDS:
            fields["reasoning"] = thinking
        mappings = self.given.get("message_property_mappings")
        for theirs, own in (mappings if isinstance(mappings, Mapping) else {}).items():
            if theirs in _MESSAGE_FIELDS:
                fields[_MESSAGE_FIELDS[theirs]] = own
            elif theirs != own:
                self.found.missing.append(
                    f"{self.where}: message_property_mappings.{theirs}: rename the field in the rows"
                )
        usual = {"role": ("role", "from"), "content": ("content", "value"), "train": ("train",)}
        kept = {ours: own for ours, own in fields.items() if own and own not in usual.get(ours, (ours,))}
        return {**kept, **self._roles()}

    def _roles(self) -> dict[str, str]:
        roles, result = self.given.get("roles"), {}
        for role, names in (roles if isinstance(roles, Mapping) else {}).items():
            names = [names] if isinstance(names, str) else names
            if role not in ROLES or not isinstance(names, list):
                self.found.missing.append(
                    f"{self.where}: roles.{role} is no list of names of {', '.join(ROLES)}"
                )
                continue
            own = [name for name in map(str, names) if SHAREGPT_ROLES.get(name.lower()) != role]
            if own:
                result[role] = ",".join(own)
        return result

    def _roles_named(self, names: Any) -> list[str]:
        """Our names of these roles, which may be those that the entry's own `roles` give them."""
        if not isinstance(names, list):
            raise DataError(f"{self.where}: `roles_to_train` must be a list of names of roles")
        own = {n.strip(): role for role, several in self._own_roles().items() for n in several}
        ours = [own.get(str(n)) or SHAREGPT_ROLES.get(str(n).lower(), str(n)) for n in names]
        return list(dict.fromkeys(ours))

    def _own_roles(self) -> dict[str, list[str]]:
        roles = self.given.get("roles")
        lists = (
            {role: [n] if isinstance(n, str) else n for role, n in roles.items()}
            if isinstance(roles, Mapping)
            else {}
        )
        return {role: [*map(str, n)] for role, n in lists.items() if role in ROLES and isinstance(n, list)}

    def _learned(self) -> None:
        """What is learned is said once for all data."""
        train = self.given.get("roles_to_train")
        if train is not None:
            names = self._roles_named([train] if isinstance(train, str) else train)
            if not names:
                self.found.missing.append(
                    f"{self.where}: roles_to_train: no role is named, so nothing but what messages mark would be "
                    "learned; here answers are learned unless a message says `train: false`"
                )
            elif not set(names) <= set(ROLES):
                self.found.missing.append(
                    f"{self.where}: roles_to_train: only roles can be learned, not {names}"
                )
            elif names != ["assistant"]:
                self.found.settings["learn"] = names
        if self.given.get("train_on_eos", "turn") != "turn":
            self.found.missing.append(
                f"{self.where}: train_on_eos: {self.given['train_on_eos']} has no counterpart: the end of every "
                "answer that is learned is learned with it (`turn`)"
            )
        arguments = self.given.get("chat_template_kwargs")
        if isinstance(arguments, Mapping):
            self.found.settings["template_args"] = dict(arguments)

    def _split(self) -> str | None:
        split = self._text("split")
        return None if split == "train" else split

    def _paths(self) -> list[str]:
        path, files = self.given["path"], self.given.get("data_files")
        files = [files] if isinstance(files, str) else files
        if files is not None and not (
            isinstance(files, list) and all(isinstance(file, str) for file in files)
        ):
            raise DataError(
                f"{self.where}: data_files must be names of files; give each split as an entry of its own"
            )
        if path in _GENERIC and files:
            return list(files)
        root = _root(path, self._text("revision"))
        return [f"{root.rstrip('/')}/{file}" for file in files] if files else [root]

    def _text(self, key: str) -> str | None:
        value = self.given.get(key)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{self.where}: `{key}` must be text")
        return value


def _root(path: str, revision: str | None) -> str:
    """A local path or a URL as it is, a hub id with `hf:` before it."""
    is_id = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path) and not path.startswith(".")
    local = Path(path).exists() or re.search(r"\.(jsonl?|csv|parquet|arrow|txt)(\.(gz|zst))?$", path)
    if not is_id or local:
        return path
    return f"hf:{path}" + (f"@{revision}" if revision else "")
