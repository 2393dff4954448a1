"""Lists of other tools: values of the wrong kind are refused, and what differs between sets does not hold for all."""

from pathlib import Path
from typing import Any

import pytest

from luthier.data.registries import axolotl_sets, llamafactory_sets
from luthier.errors import DataError


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"file_name": "x.json", "ranking": "false"}, '`ranking` is "false"; write true or false'),
        ({"file_name": 3}, "`file_name` is 3, not text"),
        ({"file_name": "x.json", "split": ["train"]}, "`split` is"),
        ({"file_name": "x.json", "columns": {"prompt": "q", "response": "q"}}, "are both 'q'"),
    ],
)
def test_values_of_the_wrong_kind_are_refused(entry: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        llamafactory_sets({"a": entry}, ["a"], Path("data"))


CHAT = {"path": "x.jsonl", "type": "chat_template"}


@pytest.mark.parametrize(
    ("named", "learn"),
    [
        ("assistant", None),
        (["assistant"], None),
        (["user", "gpt"], ["user", "assistant"]),
        (["client"], ["user"]),
        ("bot9", None),
    ],
)
def test_roles_are_read_through_the_names_of_the_entry(named: Any, learn: Any) -> None:
    roles = {"user": ["client"], "assistant": "bot9"}
    found = axolotl_sets([{**CHAT, "roles_to_train": named, "roles": roles}])
    assert found.settings.get("learn") == learn and not found.missing


def test_no_role_to_learn_is_told() -> None:
    found = axolotl_sets([{**CHAT, "roles_to_train": []}])
    assert not found.settings and "roles_to_train: no role is named" in found.missing[0]


@pytest.mark.parametrize(
    ("key", "value", "setting"),
    [("roles_to_train", ["user"], "learn"), ("chat_template_kwargs", {"a": 1}, "template_args")],
)
def test_what_differs_between_sets_does_not_hold_for_all(key: str, value: Any, setting: str) -> None:
    other = {**CHAT, "path": "y.jsonl"}
    alike = axolotl_sets([{**CHAT, key: value}, {**other, key: value}])
    assert alike.settings == {setting: value} and not alike.missing
    for entries in ([{**CHAT, key: value}, other], [other, {**CHAT, key: value}]):
        found = axolotl_sets(entries)
        assert not found.settings
        (told,) = found.missing
        assert told.startswith(key) and "x.jsonl" in told and "y.jsonl" in told
