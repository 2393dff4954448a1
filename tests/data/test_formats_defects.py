"""Defects that another tool's reader of chat data has (D1 to D3 of ../shared/research/llamafactory.md): none here.

Words put into system prompts, arguments of calls encoded twice, text next to a call lost, results of tools at the
end lost, and rows emptied because two questions follow each other.
"""

import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from chat_samples import THINKING, byte_level
from luthier.config.data_section import SetSection
from luthier.data.chat import ChatTemplate
from luthier.data.convert import convert_row, formats_of
from luthier.data.sources import Row

WORDS = st.text("abc xyz.", min_size=1, max_size=12).map(str.strip).filter(bool)
FIELDS = ("role", "content", "tool_calls")


def said(record: dict[str, Any], **options: Any) -> Any:
    section = SetSection(path="x", **options)
    return convert_row(Row(0, "x", 1, record), section, formats_of(section))


def rendered(record: dict[str, Any]) -> str:
    return ChatTemplate(byte_level(), THINKING).render(said(record)).text


def call(**arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "weather", "arguments": arguments}}


@st.composite
def messages(draw: Any) -> list[dict[str, Any]]:
    """Any order of roles, system messages anywhere, calls with and without text beside them."""
    roles = draw(st.lists(st.sampled_from(["system", "user", "assistant", "tool", "developer"]), max_size=8))
    made: list[dict[str, Any]] = [{"role": role, "content": draw(WORDS)} for role in roles]
    for message in made:
        if message["role"] == "assistant" and draw(st.booleans()):
            message["tool_calls"] = [call(city=draw(WORDS)) for _ in range(draw(st.integers(1, 3)))]
            if draw(st.booleans()):
                message["content"] = None
    place = draw(st.integers(0, len(made)))
    return [*made[:place], {"role": "assistant", "content": draw(WORDS)}, *made[place:]]


@given(messages(), st.booleans())
def test_a_conversation_is_what_its_row_says_no_more_and_no_less(
    given_: list[dict[str, Any]], as_text: bool
) -> None:
    """Also where arguments are JSON text, as OpenAI sends them."""
    row = json.loads(json.dumps(given_))
    for message in row if as_text else []:
        for one in message.get("tool_calls", []):
            one["function"]["arguments"] = json.dumps(one["function"]["arguments"])
    read = said({"messages": row})
    assert [{key: m[key] for key in FIELDS if key in m} for m in read.messages] == given_
    assert read.tools is None and read.template_args == {}


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool"]), WORDS), min_size=1, max_size=8))
@settings(max_examples=30)
def test_the_text_is_that_of_apply_chat_template(turns: list[tuple[str, str]]) -> None:
    given_ = [{"role": role, "content": text} for role, text in [*turns, ("assistant", "end")]]
    tokenizer = byte_level()
    wanted = tokenizer.apply_chat_template(given_, chat_template=THINKING, tokenize=False)
    assert rendered({"messages": given_}) == wanted


def test_d1_no_words_are_put_into_the_system_prompt() -> None:
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    assert [message["role"] for message in said(row).messages] == ["user", "assistant"]
    poet = {"messages": [{"role": "system", "content": "You are a poet."}, *row["messages"]]}
    assert said(poet).messages[0]["content"] == "You are a poet."
    for one in (row, poet):
        assert "detailed thinking" not in rendered(one)


def test_d2_arguments_are_an_object_and_text_next_to_a_call_stays() -> None:
    arguments = {"city": "Paris", "days": 3}
    for given_ in (arguments, json.dumps(arguments)):
        calls = [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": given_}}]
        answer = {"role": "assistant", "content": "I will look.", "tool_calls": calls}
        row = {"messages": [{"role": "user", "content": "Weather?"}, answer]}
        message = said(row).messages[1]
        assert message["tool_calls"][0]["function"]["arguments"] == arguments
        text = rendered(row)
        assert (
            "I will look." in text
            and '"arguments": {"city": "Paris", "days": 3}' in text
            and "\\" not in text
        )


def test_d3_results_at_the_end_and_questions_in_a_row_stay() -> None:
    question = {"role": "user", "content": "first question"}
    again = {"role": "user", "content": "second question"}
    asked = {"role": "assistant", "content": None, "tool_calls": [call(city="Paris")]}
    result = {"role": "tool", "content": "sunny and warm"}
    row = {"messages": [question, again, asked, result]}
    assert said(row).messages == row["messages"]
    text = rendered(row)
    assert all(part in text for part in ("first question", "second question", "sunny and warm", "Paris"))


def test_d3_in_sharegpt_where_roles_must_alternate_elsewhere() -> None:
    turns = [
        ("human", "one"),
        ("human", "two"),
        ("function_call", json.dumps([call(city="Paris")["function"]] * 2)),
    ]
    turns += [
        ("observation", "sun"),
        ("observation", "rain"),
        ("gpt", "both"),
        ("gpt", "really"),
        ("observation", "x"),
    ]
    read = said({"conversations": [{"from": role, "value": text} for role, text in turns]})
    roles = ["user", "user", "assistant", "tool", "tool", "assistant", "assistant", "tool"]
    assert [message["role"] for message in read.messages] == roles
    assert read.messages[2]["tool_calls"] == [call(city="Paris")] * 2
    assert [read.learns(i) for i in range(8)] == [role == "assistant" for role in roles]


def test_a_thought_before_a_call_of_sharegpt_stays() -> None:
    value = '<think>hm</think>\n{"name": "weather", "arguments": {"city": "Oslo"}}'
    turns = [{"from": "human", "value": "q"}, {"from": "function_call", "value": value}]
    message = said({"conversations": turns}).messages[1]
    assert message["content"] == "<think>hm</think>" and message["tool_calls"] == [call(city="Oslo")]


@given(
    st.lists(
        st.tuples(st.sampled_from(["text", "input_text", "output_text"]), WORDS), min_size=1, max_size=4
    ),
    WORDS,
)
@settings(max_examples=30)
def test_parts_say_what_one_message_says(texts: list[tuple[str, str]], thought: str) -> None:
    """Reasoning, text and calls as parts, under each name that data sets use, or as fields."""
    content = "".join(text for _, text in texts)
    fields = {
        "role": "assistant",
        "content": content,
        "reasoning_content": thought,
        "tool_calls": [call(city="P")],
    }
    wanted = said({"messages": [{"role": "user", "content": "q"}, fields]})
    inner = call(city="P")["function"]
    used = {"type": "tool_use", "name": "weather", "input": {"city": "P"}}
    for name in ("text", "value", "content"):
        for one in (
            {"type": "tool_call", "value": json.dumps(inner)},
            {"type": "tool_call", "value": call(city="P")},
            {"type": "tool_call", "tool_call": inner},
            used,
        ):
            parts = [
                {"type": "reasoning", name: thought},
                *({"type": kind, name: text} for kind, text in texts),
                one,
            ]
            assert (
                said(
                    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": parts}]}
                )
                == wanted
            )
    old = {"role": "assistant", "content": content, "reasoning_content": thought, "function_call": inner}
    assert said({"messages": [{"role": "user", "content": "q"}, old]}) == wanted
