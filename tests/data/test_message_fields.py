"""Fields and roles of messages that change what is learned are read or refused, never passed over."""

from typing import Any

import pytest

from luthier.config.data_section import SetSection
from luthier.data.convert import convert_row, formats_of
from luthier.data.sources import Row
from luthier.errors import RowRefused

ASKED = {"role": "user", "content": "hi"}


def said(messages: list[dict[str, Any]], **options: Any) -> Any:
    section = SetSection(path="x", **options)
    return convert_row(Row(0, "x", 1, {"messages": messages}), section, formats_of(section))


def refusal(messages: list[dict[str, Any]]) -> str:
    with pytest.raises(RowRefused) as caught:
        said(messages)
    return str(caught.value)


@pytest.mark.parametrize(
    "name", ["training", "trainable", "mask", "masked", "train_detail", "training_detail"]
)
def test_a_mask_under_another_name_refuses_the_row(name: str) -> None:
    answer = {"role": "assistant", "content": "a"}
    reason = refusal([ASKED, {**answer, name: True}])
    assert f"message 2 has `{name}`" in reason and "train" in reason.partition(";")[2]
    assert said([ASKED, {**answer, name: None}, {**answer, "id": 3}]).weights == (1.0, 1.0, 1.0)


def test_the_hint_about_a_mask_does_what_it_says() -> None:
    answers = [{"role": "assistant", "content": "a", "training": learned} for learned in (False, True)]
    assert "`tags: {train: training}`" in refusal([ASKED, *answers])
    assert said([ASKED, *answers], tags={"train": "training"}).weights == (1.0, 0.0, 1.0)


@pytest.mark.parametrize("name", ["train", "weight", "loss", "loss_weight"])
def test_a_part_with_a_weight_of_its_own_refuses_the_row(name: str) -> None:
    part = {"type": "text", "text": "a"}
    assert f"a `{name}` of its own" in refusal([ASKED, {"role": "assistant", "content": [{**part, name: 0}]}])
    assert said([ASKED, {"role": "assistant", "content": [{**part, name: 1}]}]).learns(1)


def test_the_role_function_is_the_result_of_a_tool() -> None:
    answer = {"role": "assistant", "content": "a"}
    read, other = (
        said([ASKED, {"role": role, "name": "f", "content": "{}"}, answer]) for role in ("function", "tool")
    )
    assert read == other


@pytest.mark.parametrize(
    ("role", "hint"),
    [
        ("observation", "did you mean 'tool'?"),
        ("Human", "did you mean 'user'?"),
        ("function_call", "tool_calls"),
    ],
)
def test_roles_of_other_tools_are_known_by_name(role: str, hint: str) -> None:
    assert hint in refusal([ASKED, {"role": role, "content": "x"}])


def test_the_object_of_a_tool_is_to_be_written_as_text() -> None:
    assert refusal([ASKED, {"role": "tool", "content": {"a": 1}}]).endswith("not text; write it as JSON text")
