"""What a method learns from: made out of what rows say, told about, and never made up."""

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.data.adapt import IMITATED, WANTED, adapt
from luthier.data.content import (
    Answers,
    Content,
    Conversation,
    Labelled,
    Pieces,
    Prompt,
    Related,
    Steps,
    Text,
    TokenIds,
    kind_of,
)
from luthier.data.notes import Notes
from luthier.errors import RowRefused, SetAside

ASKED = ({"role": "system", "content": "s"}, {"role": "user", "content": "q"})
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def answer(text: str) -> tuple[dict[str, Any], ...]:
    return ({"role": "assistant", "content": text},)


def judged(kind: Any, num: int, **facts: tuple[float, ...]) -> Answers:
    return Answers(ASKED, tuple(answer(f"a{i}") for i in range(num)), kind, facts, TOOLS, {"x": 1})


CONTENTS: dict[str, Content] = {
    "conversation": Conversation([*ASKED, *answer("a")], TOOLS, {"x": 1}, (1.0, 1.0, 0.5)),
    "text": Text("t"),
    "tokens": TokenIds(np.array([1, 2], np.int32), np.ones(2, np.float32)),
    "pieces": Pieces((("t", True),)),
    "pair": judged("pair", 2, score=(3.0, 1.0)),
    "good": judged("label", 1, label=(1.0,)),
    "bad": judged("label", 1, label=(0.0,)),
    "ranking": judged("ranking", 3, score=(3.0, 2.0, 1.0)),
    "steps": Steps(ASKED, ("one", "two"), (1.0, 1.0)),
    "wrong steps": Steps(ASKED, ("one", "two"), (1.0, 0.0)),
    "prompt": Prompt(ASKED, {"answer": "a"}, TOOLS, {"x": 1}),
    "class": Labelled("t", "good"),
    "number": Labelled("t", 2.5),
    "related": Related("q", ("a", "b"), (1.0, 0.0)),
    "unordered": Related("q", ("b", "a", "c"), (0.2, 0.9, 1.0)),
    "unrelated": Related("q", ("b",), (0.0,)),
}
SCORED = {"class", "number", "related", "unordered", "unrelated"}
REFUSED = {
    "conversation": {"prompt"} | SCORED,
    "answers": {"conversation", "text", "tokens", "pieces", "steps", "wrong steps", "prompt"} | SCORED,
    "steps": set(CONTENTS) - {"steps", "wrong steps"},
    "prompt": {"text", "tokens", "pieces"} | SCORED,
    "class": set(CONTENTS) - {"class", "number"},
    "number": set(CONTENTS) - {"number"},
    "similar": set(CONTENTS) - {"related", "unordered"},
    "relevance": set(CONTENTS) - {"related", "unordered", "unrelated"},
}
KINDS = {"class": "labelled", "number": "labelled", "similar": "related", "relevance": "related"}
REFUSED["pair"] = REFUSED["answers"] | {"good", "bad"}
REFUSED["label"] = REFUSED["answers"] | {"ranking"}
REFUSED["ranking"] = REFUSED["triple"] = REFUSED["answers"] | {"good", "bad", "pair"}
SET_ASIDE = {("conversation", "bad"), ("conversation", "wrong steps")}


@pytest.mark.parametrize(("wanted", "name"), list(itertools.product(WANTED, CONTENTS)))
def test_every_kind_is_adapted_refused_or_set_aside_for_every_method(wanted: str, name: str) -> None:
    content, notes = CONTENTS[name], Notes()
    if name in REFUSED[wanted]:
        with pytest.raises(RowRefused) as refused:
            adapt(content, wanted, notes, "f:1")
        assert not isinstance(refused.value, SetAside) and not notes.lines()
    elif (wanted, name) in SET_ASIDE:
        with pytest.raises(SetAside):
            adapt(content, wanted, notes, "f:1")
    else:
        made = adapt(content, wanted, notes, "f:1")
        kinds = IMITATED if wanted == "conversation" else ("answers",)
        kinds = (KINDS.get(wanted, wanted),) if wanted in ("prompt", "steps", *KINDS) else kinds
        assert kind_of(made) in kinds
        if isinstance(made, Answers) and wanted != "answers":
            assert made.judged == wanted
        assert (made is content) or notes.lines(), "what is changed is told"
        assert adapt(made, wanted) is made


def test_what_is_imitated() -> None:
    chosen: Any = adapt(CONTENTS["pair"], "conversation")
    assert chosen == Conversation([*ASKED, *answer("a0")], TOOLS, {"x": 1}, (0, 0, 1))
    assert adapt(CONTENTS["ranking"], "conversation") == adapt(CONTENTS["good"], "conversation") == chosen
    joined: Any = adapt(CONTENTS["steps"], "conversation")
    assert joined.messages[-1]["content"] == "one\ntwo" and joined.weights == (0, 0, 1)


def test_what_is_compared() -> None:
    assert adapt(CONTENTS["unordered"], "similar") == Related("q", ("a", "b"), (1.0, 0.0))
    assert adapt(Labelled("t", "2.5"), "number") == Labelled("t", 2.5)


def test_what_is_asked() -> None:
    prompt: Any = adapt(CONTENTS["conversation"], "prompt")
    assert prompt == Prompt(ASKED, {"answer": "a"}, TOOLS, {"x": 1})
    for name in ("pair", "ranking", "good", "bad", "steps"):
        asked: Any = adapt(CONTENTS[name], "prompt")
        assert asked.messages == ASKED
    with pytest.raises(RowRefused, match="nothing stands before the answer"):
        adapt(Conversation([*answer("a")]), "prompt")


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=6))
def test_of_a_ranking_the_best_and_the_worst_are_compared(scores: list[float]) -> None:
    scores = sorted(scores, reverse=True)
    content = judged("ranking", len(scores), score=tuple(scores))
    if scores[0] == scores[-1]:
        with pytest.raises(SetAside, match="the same score"):
            adapt(content, "pair")
        return
    made: Any = adapt(content, "pair")
    assert made.answers == (content.answers[0], content.answers[-1])
    assert made.facts == {"score": (scores[0], scores[-1])}


def test_of_a_ranking_the_best_is_imitated_and_the_second_compared_with_the_worst() -> None:
    content = judged("ranking", 4, rank=(1.0, 2.0, 2.0, 3.0))
    made: Any = adapt(content, "triple")
    assert made.answers == tuple(content.answers[i] for i in (0, 1, 3)) and made.facts == {"rank": (1, 2, 3)}
    with pytest.raises(SetAside, match="the second and the worst answer have the same score"):
        adapt(judged("ranking", 3, rank=(1.0, 2.0, 2.0)), "triple")
    with pytest.raises(SetAside, match="the best and the worst answer have the same score"):
        adapt(judged("ranking", 3, rank=(1.0, 1.0, 1.0)), "ranking")
    with pytest.raises(RowRefused, match="a list of three answers or more"):
        adapt(judged("ranking", 2, rank=(1.0, 2.0)), "triple")


def test_a_pair_as_two_answers_with_labels() -> None:
    made: Any = adapt(CONTENTS["pair"], "label")
    assert (
        made.facts == {"score": (3.0, 1.0), "label": (1.0, 0.0)} and made.answers == judged("pair", 2).answers
    )


def test_notes_count_the_rows() -> None:
    notes = Notes()
    for number in range(3):
        adapt(CONTENTS["pair"], "conversation", notes, f"f:{number + 1}")
    assert notes.lines() == [
        "preferences: the method imitates answers, so only the chosen one is learned (3 rows, first f:1)"
    ]
