"""Calls of tools: found in the template, read from the text, in whatever pieces it comes."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chat_samples import CHATML, SHARED, byte_level
from luthier.data.chat import ChatTemplate
from luthier.serve.tool_calls import Call, CallFormat, CallReader, call_format
from serve_parts import CALLS_TEMPLATE

HERMES = CallFormat("<tool_call>", "</tool_call>", "name", "arguments")
LLAMA = CallFormat("", "", "name", "parameters")
NAMES = ("get_weather", "add")


def test_templates_tell_how_calls_are_written() -> None:
    assert call_format(ChatTemplate(byte_level(), CALLS_TEMPLATE)) == HERMES
    assert call_format(ChatTemplate(byte_level(), CHATML)) is None


@pytest.mark.skipif(not SHARED.is_dir(), reason="templates of real models are not here")
@pytest.mark.parametrize(
    "name, format",
    [("qwen2_5", HERMES), ("qwen3", HERMES), ("qwen3_instruct_2507", HERMES), ("llama3_1", LLAMA)],
)
def test_templates_of_real_models(name: str, format: CallFormat) -> None:
    source = (SHARED / f"{name}.jinja").read_text()
    assert call_format(ChatTemplate(byte_level(), source)) == format


def read(format: CallFormat, pieces: list[str]) -> tuple[str, list[Call]]:
    reader = CallReader(format, NAMES)
    parts = [part for piece in pieces for part in reader.push(piece)] + reader.close()
    text = "".join(part for part in parts if isinstance(part, str))
    return text, [part for part in parts if isinstance(part, Call)]


ARGUMENTS = st.dictionaries(
    st.text(max_size=5), st.one_of(st.text(max_size=8), st.integers(), st.none()), max_size=3
)
CALLS = st.lists(st.tuples(st.sampled_from(NAMES), ARGUMENTS), max_size=3)


def cut(text: str, places: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@given(
    calls=CALLS,
    before=st.text("ab <>\n{", max_size=12),
    places=st.lists(st.integers(0, 400), max_size=12),
)
def test_calls_come_out_as_they_were_written(calls: Any, before: str, places: list[int]) -> None:
    written = before + "".join(
        f"\n<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
        for name, arguments in calls
    )
    text, found = read(HERMES, cut(written, places))
    assert [(call.name, json.loads(call.arguments)) for call in found] == calls
    assert text == before if not calls else text.rstrip() == before.rstrip()


@given(text=st.text('ab<tol_c>/{}"\n ', max_size=60), places=st.lists(st.integers(0, 60), max_size=8))
def test_text_that_is_no_call_stays_as_it_is(text: str, places: list[int]) -> None:
    for format in (HERMES, LLAMA):
        assert read(format, cut(text, places)) == (text, [])


@pytest.mark.parametrize(
    "written",
    [
        '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>',
        '<tool_call>{"name": ["add"], "arguments": {}}</tool_call>',
        "<tool_call>not JSON</tool_call> and on",
        "<tool_call>[]</tool_call>",
        '<tool_call>{"name": "add"',
    ],
)
def test_what_cannot_be_called_stays_text(written: str) -> None:
    text, calls = read(HERMES, list(written))
    assert not calls and text.replace("\n", "") == written.replace("\n", "")


def test_a_call_without_its_closer_counts() -> None:
    assert read(HERMES, ['<tool_call>\n{"name": "add", "arguments": {"a": 1}}']) == (
        "",
        [Call("add", '{"a": 1}')],
    )


def test_bare_calls() -> None:
    one = '{"name": "add", "parameters": {"a": 1}}'
    assert read(LLAMA, list(one)) == ("", [Call("add", '{"a": 1}')])
    assert read(LLAMA, [f"[{one}, {one}]"]) == ("", [Call("add", '{"a": 1}')] * 2)
    assert read(LLAMA, list("Sure: " + one)) == ("Sure: " + one, [])
