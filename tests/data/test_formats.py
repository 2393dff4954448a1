"""Laws of formats: how they are told apart, and that the same thing written in several of them stays the same."""

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.config.data_section import SetSection
from luthier.data.content import Content, Prompt, Text
from luthier.data.conversation import Conversation
from luthier.data.convert import convert_row, formats_of
from luthier.data.detect import Format, detect, detect_columns, known_formats
from luthier.data.notes import Notes
from luthier.data.sources import Row
from luthier.errors import RowRefused

FORMATS = {format.name: format for format in known_formats()}
SHAPES = [(format, shape) for format in known_formats() for shape in format.shapes]
WORDS = st.text("abc xyz.", min_size=1, max_size=12)


def said(record: dict[str, Any], notes: Notes | None = None, **options: Any) -> Any:
    section = SetSection(path="x", **options)
    return convert_row(Row(0, "x.jsonl", 1, record), section, formats_of(section), notes)


def turn(role: str, content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@st.composite
def dialogues(draw: Any) -> list[dict[str, Any]]:
    """Messages of any order of roles, with calls and results of tools, and an answer somewhere."""
    roles = draw(st.lists(st.sampled_from(["user", "assistant", "tool", "call"]), min_size=1, max_size=8))
    messages = []
    for role in [*roles, "assistant"]:
        if role == "call":
            calls = [
                {
                    "type": "function",
                    "function": {"name": draw(WORDS), "arguments": {"x": draw(st.integers())}},
                }
                for _ in range(draw(st.integers(1, 2)))
            ]
            messages.append(turn("assistant", None, tool_calls=calls))
        else:
            messages.append(turn(role, draw(WORDS)))
    return messages


def as_sharegpt(
    messages: list[dict[str, Any]], role: str = "from", content: str = "value"
) -> list[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt", "tool": "observation"}
    result = []
    for message in messages:
        if calls := message.get("tool_calls"):
            inner = [call["function"] for call in calls]
            result.append({role: "function_call", content: json.dumps(inner if len(inner) > 1 else inner[0])})
        else:
            result.append({role: names[message["role"]], content: message["content"]})
    return result


@given(st.sampled_from(SHAPES), st.data())
def test_a_row_with_the_columns_of_a_format_has_it_whatever_else_it_can_use(
    pair: tuple[Format, tuple[str, ...]], data: st.DataObject
) -> None:
    format, shape = pair
    extra = data.draw(st.lists(st.sampled_from(format.optional))) if format.optional else []
    assert detect_columns(frozenset([*shape, *extra, "something_else"])) == format


@given(st.sampled_from(SHAPES), st.sampled_from(SHAPES))
def test_two_formats_at_once_are_told_apart_or_refused_in_either_order(
    one: tuple[Format, tuple[str, ...]], two: tuple[Format, tuple[str, ...]]
) -> None:
    names = frozenset(one[1] + two[1])
    try:
        found = detect_columns(names)
    except RowRefused as reason:
        assert one[0] != two[0] and "rows have the columns of several formats" in str(reason)
    else:
        assert found is not None
        for (
            other
        ) in known_formats():  # a winner has all of another's columns and more, or the other one yields
            assert other == found or other.claim(names) < found.claim(names) or found.name in other.yields


@pytest.mark.parametrize(
    ("columns", "format"),
    [
        ("prompt prompt_id messages", "messages"),
        ("prompt prompt_id chosen rejected messages score_chosen score_rejected", "preference"),
        ("instruction input output text", "alpaca"),
        ("text timestamp url", "text"),
        ("text label", "labelled"),
        ("idx sentence label", "labelled"),
        ("anchor positive negative", "related"),
        ("query document label", "related"),
        ("query_id query documents labels", "related"),
        ("instruction context response category", "alpaca"),
        ("id system_prompt question response", "question_answer"),
        ("prompt answer ground_truth", "prompt"),
        ("prompt completion label", "unpaired"),
        ("messages label", "unpaired"),
        ("conversations chosen rejected", "preference"),
        ("prompt completions labels", "stepwise"),
        ("prompt completions scores", "ranking"),
        ("prompt reference chosen rejected margin", "preference"),
        ("id conversations source", "sharegpt"),
        ("input_ids attention_mask labels", "tokenised"),
        ("prompt text", None),
        ("prompt question answer", None),
        ("messages prompt completion", None),
    ],
)
def test_columns_of_data_sets_as_they_are_met(columns: str, format: str | None) -> None:
    names = frozenset(columns.split())
    if format is None:
        with pytest.raises(RowRefused, match="Say which one is meant with `format`"):
            detect_columns(names)
    else:
        assert detect_columns(names) == FORMATS[format]


def test_columns_that_are_null_in_a_row_do_not_count() -> None:
    """A table of several kinds of rows has all columns in each of them."""
    columns = dict.fromkeys(["messages", "text", "prompt", "completion"])
    assert detect({**columns, "text": "t"}) == FORMATS["text"]
    assert detect({**columns, "prompt": "p", "completion": "c"}) == FORMATS["prompt_completion"]
    assert detect({"messages": None}) == FORMATS["messages"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "text", "label", "score"]), inner
        )
    ),
    max_leaves=8,
)


@given(st.sampled_from(SHAPES), st.data())
@settings(max_examples=200)
def test_whatever_the_columns_hold_the_row_is_read_or_refused(
    pair: tuple[Format, tuple[str, ...]], data: st.DataObject
) -> None:
    """No other error, nothing changed in the row, and the same again the next time."""
    format, shape = pair
    names = [*shape, *data.draw(st.lists(st.sampled_from(sorted(format.own)), max_size=3))]
    record = {name: data.draw(JSON, label=name) for name in names}
    before = copy.deepcopy(record)

    def outcome() -> Content | str:
        try:
            return format.convert(record)
        except RowRefused as reason:
            assert str(reason)
            return str(reason)

    first = outcome()
    assert repr(record) == repr(before)
    assert repr(outcome()) == repr(first)


@given(dialogues(), WORDS)
def test_sharegpt_says_what_messages_say(messages: list[dict[str, Any]], system: str) -> None:
    tool = {"name": "f", "parameters": {}}
    wrapped = [{"type": "function", "function": tool}]
    wanted = said({"messages": [turn("system", system), *messages], "tools": wrapped})
    assert isinstance(wanted, Conversation)
    rows = {"conversations": as_sharegpt(messages), "system": system, "tools": json.dumps([tool])}
    assert said(rows) == wanted
    assert said({**rows, "conversations": as_sharegpt(messages, "role", "content")}) == wanted
    named = {"role": "who", "content": "what", "user": "human", "assistant": "gpt", "tool": "observation"}
    renamed = {"dialog": as_sharegpt(messages, "who", "what"), "system": system, "tools": [tool]}
    assert said(renamed, columns={"conversations": "dialog"}, tags=named) == wanted


@given(st.lists(st.tuples(WORDS, WORDS), max_size=3), WORDS, WORDS, WORDS, WORDS)
def test_alpaca_says_what_messages_say(
    history: list[tuple[str, str]], system: str, instruction: str, more: str, output: str
) -> None:
    exchanges = [
        turn(role, text) for pair in history for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    last = [turn("user", f"{instruction}\n{more}"), turn("assistant", output)]
    wanted = said({"messages": [turn("system", system), *exchanges, *last]})
    record = {"instruction": instruction, "input": more, "output": output, "system": system}
    pairs = [list(pair) for pair in history]
    assert said({**record, "history": pairs}) == wanted
    assert said({**record, "history": json.dumps(pairs)}) == wanted
    assert said({**record, "input": "", "history": None}).messages[1]["content"] == instruction


@given(dialogues(), st.integers(0, 8), WORDS, WORDS)
def test_implicit_and_explicit_preferences_are_the_same(
    messages: list[dict[str, Any]], num: int, good: str, bad: str
) -> None:
    context = [turn("user", "q"), *messages[: num % len(messages)]]
    answers = [[turn("assistant", f"1{good}")], [turn("assistant", f"2{bad}")]]
    implicit = said({"chosen": context + answers[0], "rejected": context + answers[1]})
    explicit = said({"prompt": context, "chosen": answers[0], "rejected": answers[1]})
    texts = said({"prompt": context, "chosen": f"1{good}", "rejected": f"2{bad}"})
    whole = said({"prompt": context, "chosen": context + answers[0], "rejected": context + answers[1]})
    shared = said({"conversations": as_sharegpt(context), "chosen": as_sharegpt(answers[0])[0], "rejected": as_sharegpt(answers[1])[0]})  # fmt: skip # noqa: E501
    assert implicit == explicit == texts == whole == shared
    assert list(implicit.context) == context and implicit.judged == "pair"
    assert [list(answer) for answer in implicit.answers] == answers
    learned = implicit.conversation(0)
    assert [learned.learns(i) for i in range(len(learned.messages))] == [False] * len(context) + [True]


def test_more_preferences() -> None:
    alpaca = said({"instruction": "i", "input": "j", "chosen": "a", "rejected": "b", "system": "s"})
    assert [m["content"] for m in alpaca.context] == ["s", "i\nj"]
    spoken = said(
        {"chosen": "\n\nHuman: hi\n\nAssistant: good", "rejected": "\n\nHuman: hi\n\nAssistant: bad"}
    )
    assert spoken.context == (turn("user", "hi"),) and spoken.answers[1] == (turn("assistant", "bad"),)
    scored = said(
        {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 8, "score_rejected": 2.5, "margin": 3}
    )
    assert scored.facts == {"score": (8.0, 2.5), "margin": (3.0, 3.0)}


@given(st.permutations([0, 1, 2, 3]))
def test_rankings_have_the_best_first_however_they_are_written(order: list[int]) -> None:
    answers = [f"answer {place}" for place in order]
    inside = [{"answer": text, "rank": place + 1} for text, place in zip(answers, order, strict=True)]
    by_score = said({"prompt": "q", "answers": answers, "scores": [-place for place in order]})
    by_rank = said({"prompt": "q", "completions": answers, "ranks": [place + 1 for place in order]})
    nested = said({"prompt": "q", "answers": inside}, format="ranking")
    for one in (by_score, by_rank, nested):
        assert [answer[0]["content"] for answer in one.answers] == [f"answer {i}" for i in range(4)]
    assert by_rank.facts == nested.facts == {"rank": (1, 2, 3, 4)} and by_score.facts == {
        "score": (0, -1, -2, -3)
    }


def test_answers_with_labels() -> None:
    for record in (
        {"prompt": "q", "completion": "a", "label": True},
        {"messages": [turn("user", "q"), turn("assistant", "a")], "label": 1},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "kto_tag": True},
        {"instruction": "q", "output": "a", "kto_tag": "true"},
    ):
        one = said(record)
        assert (one.judged, one.facts, one.context) == ("label", {"label": (1.0,)}, (turn("user", "q"),))
        assert one.answers == ((turn("assistant", "a"),),)


def test_steps_tokens_and_pieces() -> None:
    steps = said({"prompt": "q", "completions": ["one", "two"], "labels": [True, False]})
    assert (steps.steps, steps.labels) == (("one", "two"), (1.0, 0.0))
    ids = said({"input_ids": [5, 6, 7, 0], "labels": [-100, 6, 7, -100], "attention_mask": [1, 1, 1, 0]})
    assert (ids.ids.tolist(), ids.weights.tolist()) == ([5, 6, 7], [0, 1, 1])
    assert said({"input_ids": [5, 6]}).weights.tolist() == [1, 1]
    pieces = said({"segments": [{"text": "<s>q", "label": False}, {"text": "a</s>", "label": True}]})
    assert pieces.pieces == (("<s>q", False), ("a</s>", True))


def test_prompts_keep_every_other_column() -> None:
    record = {"prompt": "2+2?", "answer": "4", "level": {"x": [1]}, "none": None}
    prompt = said(record)
    assert isinstance(prompt, Prompt) and prompt.messages == (turn("user", "2+2?"),)
    assert prompt.columns == {"answer": "4", "level": {"x": [1]}, "none": None}
    unanswered = said({"messages": [turn("user", "q")], "answer": "4"})
    assert isinstance(unanswered, Prompt) and unanswered.columns == {"answer": "4"}
    text = said({"text": "t", "url": "u"})
    assert isinstance(text, Text) and text.columns == {"url": "u"}


@given(
    st.sampled_from(["text", "question_answer", "alpaca", "messages", "sharegpt", "prompt_completion"]),
    st.data(),
)
def test_columns_under_other_names_say_the_same(name: str, data: st.DataObject) -> None:
    samples: dict[str, dict[str, Any]] = {
        "text": {"text": "t"},
        "question_answer": {"question": "q", "answer": "a", "system": "s"},
        "alpaca": {"instruction": "i", "input": "j", "output": "o"},
        "messages": {"messages": [turn("user", "q"), turn("assistant", "a")]},
        "sharegpt": {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        "prompt_completion": {"prompt": "p", "completion": "c", "tools": None},
    }
    record = samples[name]
    chosen = data.draw(st.lists(st.sampled_from(sorted(record)), unique=True))
    # The other names may be those of other columns of the format, which then are not those columns.
    others = data.draw(st.permutations(["text", "input", "x y", "output", "question", "prompt"]))
    columns = dict(zip(chosen, [other for other in others if other not in record], strict=False))
    renamed = {columns.get(column, column): value for column, value in record.items()}
    assert said(renamed, format=name, columns=columns) == said(record, format=name)


TABLE: list[dict[str, Any]] = [
    {
        "messages": [turn("user", "q"), turn("assistant", "a")],
        "tools": None,
        "chat_template_kwargs": {"x": 1},
    },
    {
        "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
        "tools": [{"name": "f"}],
    },
    {"instruction": "i", "input": None, "output": "o", "history": [["q", "a"]]},
    {"prompt": "q", "completion": "a", "label": True},
    {"prompt": "q", "completion": "a", "label": 0},
    {"prompt": "q", "chosen": "a", "rejected": "b", "score_chosen": 2.5, "score_rejected": -1, "margin": 3},
    {"prompt": "q", "completions": ["a", "b"], "labels": [1, 0]},
    {"prompt": "q", "answers": ["a", "b"], "scores": [1, 0.5]},
    {"input_ids": [1, 2], "labels": [-100, 2]},
    {"segments": [{"text": "a", "label": True}]},
]


@pytest.mark.parametrize("record", TABLE, ids=lambda record: "-".join(record))
def test_cells_of_a_table_of_text_say_what_json_says(record: dict[str, Any]) -> None:
    """As CSV has them: lists, objects and numbers as text, nothing as an empty text."""
    cells = {
        name: "" if value is None else value if isinstance(value, str) else json.dumps(value)
        for name, value in record.items()
    }
    assert repr(said(cells)) == repr(said(record))
