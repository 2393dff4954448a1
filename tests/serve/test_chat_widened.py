"""Thoughts, tools and two models side by side, through the terminal's own interface."""

import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import luthier
from luthier.cli.main import main
from luthier.errors import DataError
from luthier.rollout.sampling import SamplingSettings
from luthier.serve.chat import ChatSession, Message, Tools
from luthier.serve.side_by_side import SideBySide
from luthier.serve.terminal import Terminal, converse
from luthier.serve.thinking import ThoughtReader
from luthier.serve.tool_calls import CallFormat
from tiny_runs import tiny_config

SETTINGS = SamplingSettings(max_new_tokens=8)
TOOLS = Tools(
    [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}],
    CallFormat("<tool_call>", "</tool_call>", "name", "arguments"),
)
CALL = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'


class Written:
    """A template that keeps what it is shown, with one token a message."""

    def __init__(self) -> None:
        self.shown: list[list[Message]] = []
        self.more: list[dict[str, Any]] = []

    def prompt_ids(self, messages: Sequence[Message], **more: Any) -> list[int]:
        self.shown.append(list(messages))
        self.more.append(more)
        return [1] * len(messages)


class Says:
    """A model that says these texts in turn, letter by letter."""

    def __init__(self, *texts: str, max_positions: int | None = None):
        self.max_positions = max_positions
        self.left = list(texts)

    def stream(self, prompt: Sequence[int], settings: SamplingSettings) -> Iterator[str]:
        yield from self.left.pop(0)


def talk(
    session: ChatSession | SideBySide, text: str, monkeypatch: pytest.MonkeyPatch, **how: bool
) -> tuple[str, list[str]]:
    """What is printed, and the notes, while the lines of a text are piped in."""
    out, notes = io.StringIO(), io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    converse(session, Terminal(out, notes, False, **how))
    return out.getvalue(), notes.getvalue().splitlines()


PIECES = st.lists(
    st.sampled_from(["<think>", "</think>", "<", "th", " a ", "b", "\n", "<think", ">"]), max_size=12
)


@given(PIECES, st.booleans())
def test_thoughts_are_the_same_however_the_text_is_cut(pieces: list[str], opened: bool) -> None:
    whole, cut = ThoughtReader(opened), ThoughtReader(opened)
    text = "".join(pieces)
    at_once = whole.push(text) + whole.close()
    assert at_once == "".join([*map(cut.push, text), cut.close()]) and whole.thoughts == cut.thoughts
    assert "<think>" not in at_once or "</think>" in text or opened


@pytest.mark.parametrize(
    ("opened", "text", "answer", "thoughts"),
    [
        (False, "<think>\nhm\n</think>\n\nYes.", "Yes.", "hm\n"),
        (True, "hm</think>Yes.", "Yes.", "hm"),
        (False, "No < 3", "No < 3", ""),
        (False, "ends <thi", "ends <thi", ""),
        (False, "<think>never done", "", "never done"),
    ],
)
def test_thoughts_by_hand(opened: bool, text: str, answer: str, thoughts: str) -> None:
    reader = ThoughtReader(opened)
    assert (reader.push(text) + reader.close(), reader.thoughts) == (answer, thoughts)


def test_thoughts_are_folded_until_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "<think>one two</think>\nYes."
    session = ChatSession(Says(said, said, "No."), Written(), SETTINGS)
    out, notes = talk(session, "a\n/think\n/think show\nb\n/think fold\nc\n/think\n/think x\n", monkeypatch)
    assert out == f"Yes.\n{said}\nNo.\n"
    assert notes == [
        "(thought 2 words before that; /think shows them)",
        "one two",
        "thoughts: shown",
        "thoughts: folded",
        "the model has thought nothing before its last answer",
        "error: /think takes show or fold, or nothing, not 'x'",
    ]
    assert session.history[1]["content"] == said  # what the template makes of earlier thoughts is its own


def test_calls_are_shown_and_the_person_is_the_tool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    template = Written()
    session = ChatSession(Says("Let me see. " + CALL, "It is 3.", "Bye."), template, SETTINGS, tools=TOOLS)
    out, notes = talk(
        session, f"what is 1 + 2?\n3\n/save {tmp_path / 'x.jsonl'}\nbye\n/undo\n/undo\n", monkeypatch
    )
    assert out.endswith("It is 3.\nBye.\n") and session.messages == []
    assert notes[0].startswith('The model calls add({"a": 1, "b": 2})')
    assert template.more == [{"tools": TOOLS.definitions}] * 3
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    shown = template.shown[1]
    assert [message["role"] for message in shown] == ["user", "assistant", "tool"]
    assert shown[1]["tool_calls"] == [call] and shown[1]["content"].strip() == "Let me see."
    assert shown[2] == {"role": "tool", "name": "add", "content": "3"}
    assert len(json.loads((tmp_path / "x.jsonl").read_text())["messages"]) == 4


def test_a_call_without_a_result_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    session = ChatSession(Says("One.", CALL), Written(), SETTINGS, tools=TOOLS)
    _, notes = talk(session, "a\nb", monkeypatch)
    assert notes[-1] == "(the calls have no results, so the question is taken back)"
    assert [message["content"] for message in session.history] == ["a", "One."] and not session.open_calls


def test_the_exchange_under_way_is_never_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five tokens: the question, its call and result, and two of answer; older exchanges go first."""
    template, settings = Written(), SamplingSettings(max_new_tokens=2)
    session = ChatSession(Says("x", CALL, "y", max_positions=5), template, settings, tools=TOOLS)
    talk(session, "a\nb\n3\n", monkeypatch)
    assert [message["role"] for message in template.shown[-1]] == ["user", "assistant", "tool"]
    assert session.num_hidden == 1 and session.num_exchanges == 2
    full = ChatSession(Says(CALL, "y", max_positions=3), Written(), settings, tools=TOOLS)
    list(full.ask("a"))
    with pytest.raises(DataError, match="context holds 3"):
        list(full.go_on(["3"]))
    assert full.open_calls and len(full.history) == 2


def test_two_models_are_asked_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    before = ChatSession(Says("old", "old 2"), Written(), SETTINGS)
    after = ChatSession(Says("new", "new 2"), Written(), SETTINGS)
    pair = SideBySide({"before": before, "after": after})
    lines = f"a\n/system be kind\nb\n/save {tmp_path / 'x.jsonl'}\n/undo\n"
    out, _ = talk(pair, lines, monkeypatch)
    assert out == "[before]\nold\n[after]\nnew\n[before]\nold 2\n[after]\nnew 2\n"
    assert before.system == after.system == pair.system == "be kind" and len(after.history) == 2
    saved = [json.loads((tmp_path / f"x-{label}.jsonl").read_text()) for label in ("before", "after")]
    assert [one["messages"][-1]["content"] for one in saved] == ["old 2", "new 2"]
    pair.reset()
    assert before.history == after.history == [] and not pair.undo()


def test_a_run_beside_its_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = luthier.train(tiny_config(tmp_path, eval={"samples": 0}), say=lambda text: None).folder
    alone = ["chat", str(run), "--once", "one two", "--temperature", "0", "--max-new-tokens", "6"]
    capsys.readouterr()
    assert main([*alone, "--compare"]) == 0
    both = capsys.readouterr().out
    assert main(alone) == 0
    assert both.startswith("[before]\n") and both.endswith(f"[after]\n{capsys.readouterr().out}")
    tools = tmp_path / "tools.json"
    tools.write_text(json.dumps(TOOLS.definitions))
    assert main([*alone, "--tools", str(tools)]) == 2
    assert "does not tell it of tools" in capsys.readouterr().err
    assert main([*alone, "--thinking", "off"]) == 2
    assert "has no switch for it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--thinking", "loud"], "--thinking is 'loud'; known: fold, show, off"),
        (["--compare"], "is not the folder of a run"),
        (["--tools", "no.json"], "cannot be read"),
    ],
)
def test_wrong_options(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["chat", "no/such/model", *options]) == 2
    assert told in capsys.readouterr().err
