"""What a row may hold, and the reason for everything that it may not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.conversation import Conversation, conversation_from
from luthier.errors import RowRefused

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}


def calls(*tool_calls: Any) -> list[dict[str, Any]]:
    return [USER, {"role": "assistant", "content": None, "tool_calls": list(tool_calls)}]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (None, "`messages` is null, not a list of messages"),
        ({}, "`messages` is an object, not a list"),
        ("[{", "messages is text that is not JSON"),
        ([], "the conversation is empty"),
        ([USER], "no assistant message, so there is nothing to learn"),
        (["hello"], "message 1 is text, not an object"),
        ([{"content": "q"}], "message 1 has no `role`; its fields are content"),
        ([{"role": "human", "content": "q"}], "message 1 has the unknown role 'human'; did you mean 'user'?"),
        ([USER, {"role": "asistant", "content": "a"}], "message 2 .* 'asistant'; did you mean 'assistant'?"),
        ([{"role": "xyz", "content": "q"}], "unknown role 'xyz'; it must be one of system, developer, user,"),
        ([{"role": 3, "content": "q"}], "unknown role 3; it must be one of"),
        (
            [{"role": "user", "content": 5}, ANSWER],
            r"message 1 \(user\) has a content that is a number, not text",
        ),
        (
            [{"role": "user", "content": [{"type": "image"}]}, ANSWER],
            "content part of type 'image'; only parts",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}, ANSWER], "a text part without `text`"),
        ([{"role": "user"}, ANSWER], r"message 1 \(user\) has neither text nor tool calls"),
        ([USER, {"role": "assistant"}], r"message 2 \(assistant\) has neither text nor tool calls"),
        ([{**USER, "tool_calls": [CALL]}, ANSWER], r"message 1 \(user\) has `tool_calls`; only an assistant"),
        ([USER, {**ANSWER, "reasoning_content": 3}], "`reasoning_content` that is a number, not text"),
        ([USER, {**ANSWER, "tool_calls": {}}], "`tool_calls` that are an object, not a list"),
        (calls({"function": {}}), "tool call 1 has no function `name`"),
        (calls(CALL, "f"), "tool call 2 has no function `name`"),
        (calls({"name": "f", "arguments": "{x"}), "`arguments` of tool call 1 is text that is not JSON"),
        (calls({"name": "f", "arguments": "3"}), "`arguments` of tool call 1 is a number, not an object"),
        ([USER, {**ANSWER, "train": "no"}], "message 2 has `train: 'no'`; it must be true or false"),
        ([USER, {**ANSWER, "weight": -0.5}], "message 2 has `weight: -0.5`; a weight is 0 or more"),
        ([USER, {**ANSWER, "weight": "1"}], "message 2: its `weight` is text, not a number"),
        ([USER, {**ANSWER, "loss_weight": float("nan")}], "its `loss_weight` is not a finite number"),
        ([USER, {**ANSWER, "weight": 0}], "all targets masked: every assistant message is marked"),
    ],
)
def test_refused_with_the_reason(messages: Any, reason: str) -> None:
    with pytest.raises(RowRefused, match=reason):
        conversation_from(messages)


@pytest.mark.parametrize(
    ("tools", "template_args", "reason"),
    [
        ("{", None, "`tools` is text that is not JSON"),
        ({"a": 1}, None, "`tools` is an object, not a list of objects"),
        (["f"], None, "`tools` is a list, not a list of objects"),
        (None, "x", "`chat_template_kwargs` is text, not an object"),
    ],
)
def test_refused_tools_and_variables(tools: Any, template_args: Any, reason: str) -> None:
    with pytest.raises(RowRefused, match=reason):
        conversation_from([USER, ANSWER], tools, template_args)


def test_json_text_is_read_where_objects_belong() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    flat = {"name": "f", "arguments": '{"x": 1}'}
    read = conversation_from(json.dumps(calls(flat)), json.dumps([tool]))
    assert read.tools == [tool]
    assert read.messages[1]["tool_calls"] == [{"name": "f", "arguments": {"x": 1}}]
    assert conversation_from([USER, ANSWER], "").tools is None
    assert conversation_from([USER, ANSWER], []).tools is None


def test_text_parts_become_text_and_other_fields_stay() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    message = {"role": "tool", "content": parts, "name": "f", "tool_call_id": "7"}
    read = conversation_from([message, ANSWER])
    assert read.messages[0] == {**message, "content": "ab"}


def test_what_is_learned_and_what_a_part_keeps() -> None:
    read = conversation_from([USER, {**ANSWER, "train": False}, USER, {**ANSWER, "weight": 1}])
    assert [read.learns(i) for i in range(4)] == [False, False, False, True]
    assert "train" not in read.messages[1] and "weight" not in read.messages[3]
    part = read.part([2, 3])
    assert part == Conversation(read.messages[2:], None, {}, (1.0, 1.0))


@given(
    st.lists(st.tuples(st.none() | st.booleans(), st.none() | st.floats(0, 4), st.none() | st.integers(0, 3)))
)
def test_a_weight_is_the_product_of_all_that_says_it(given_weights: list[tuple[Any, Any, Any]]) -> None:
    """`train: false` is weight 0; `weight` and `loss_weight` are factors; nothing said is 1."""
    answers = [{**ANSWER, "train": t, "weight": w, "loss_weight": lw} for t, w, lw in given_weights]
    read = conversation_from([USER, ANSWER, *answers])
    wanted = [
        (t is not False) * (1 if w is None else w) * (1 if lw is None else lw) for t, w, lw in given_weights
    ]
    assert [read.weight(i) for i in range(2, 2 + len(answers))] == pytest.approx(wanted)
    assert [read.learns(i + 2) for i in range(len(answers))] == [weight > 0 for weight in wanted]
    assert not any({"train", "weight", "loss_weight"} & set(message) for message in read.messages)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["role", "content", "tool_calls", "function", "name", "arguments", "weight"]), inner)))  # fmt: skip # noqa: E501
def test_any_json_is_read_or_refused(value: Any) -> None:
    for messages in (value, [value], [USER, value], [USER, {"role": "assistant", "content": value}]):
        try:
            read = conversation_from(messages, value, value)
        except RowRefused as refusal:
            assert str(refusal)
        else:
            assert any(read.learns(i) for i in range(len(read.messages)))


def test_the_row_itself_is_not_changed() -> None:
    messages = [USER, {**ANSWER, "train": True, "tool_calls": [{"name": "f", "arguments": "{}"}]}]
    before = json.dumps(messages)
    conversation_from(messages)
    assert json.dumps(messages) == before
