# ruff: noqa: E501 - rows are one line each
"""What is left out on purpose: the laws of duplicates, of overlap with the evaluation, of lengths and languages."""

import builtins
import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.config.data_section import CleanSection
from luthier.data.clean import Cleaner, said
from luthier.data.clean.exact import ExactDuplicates
from luthier.data.clean.grams import gram_hashes
from luthier.data.clean.near import NearDuplicates
from luthier.data.clean.places import Places
from luthier.data.clean.said import words
from luthier.data.clean.state import from_bytes, joined
from luthier.data.content import Answers, Content, Pieces, Steps, Text, TokenIds
from luthier.data.conversation import conversation_from
from luthier.errors import ConfigError

VOCABULARY = "time year people way day man thing woman life child world school state family".split()  # noqa: SIM905


def chat(question: str, answer: str, system: str | None = None) -> Content:
    turns = [("system", system), ("user", question), ("assistant", answer)]
    return conversation_from([{"role": role, "content": text} for role, text in turns if text is not None])


def cleaner(eval_texts: list[str] | None = None, **options: Any) -> Cleaner:
    return Cleaner(CleanSection(**options), eval_texts)


def outcomes(cleaner: Cleaner, rows: list[Content], first: int = 1) -> list[str | None]:
    return [cleaner.check(row, f"rows.jsonl:{line}") for line, row in enumerate(rows, first)]


def kept(cleaner: Cleaner, rows: list[Content]) -> list[int]:
    return [number for number, reason in enumerate(outcomes(cleaner, rows)) if reason is None]


def similarity(first: str, second: str) -> float:
    """The Jaccard similarity of word 5-grams, computed plainly."""
    sets = [{tuple(own[i : i + 5]) for i in range(len(own) - 4)} for own in (words(first), words(second))]
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


# few different rows, so that many are equal
ROW = st.one_of(
    st.builds(chat, st.sampled_from("ab"), st.sampled_from(["yes", "no", "!?"]), st.sampled_from([None, "s"])),
    st.builds(Text, st.sampled_from(["", "one", "one two three four five six", "¿…"])),
    st.builds(
        lambda ids: TokenIds(np.array(ids, np.int32), np.ones(len(ids), np.float32)),
        st.sampled_from([[1], [1, 2, 3, 4, 5, 6], [3, 1]]),
    ),
    st.builds(lambda text, learned: Pieces(((text, learned),)), st.sampled_from("ab"), st.booleans()),
    st.builds(
        lambda label: Answers(
            ({"role": "user", "content": "q"},), (({"role": "assistant", "content": "a"},),), "label", {"label": (label,)}
        ),
        st.sampled_from([0.0, 1.0]),
    ),
    st.builds(lambda label: Steps(({"role": "user", "content": "q"},), ("a",), (label,)), st.sampled_from([0.0, 1.0])),
)  # fmt: skip


@given(st.lists(ROW, max_size=30), st.randoms(use_true_random=False))
def test_exactly_one_of_equal_rows_is_kept_and_it_is_the_first(
    rows: list[Content], draw: random.Random
) -> None:
    def same(a: Content, b: Content) -> bool:
        return repr(a) == repr(b)

    firsts = [i for i, row in enumerate(rows) if not any(same(row, rows[j]) for j in range(i))]
    assert kept(cleaner(exact_duplicates=True), rows) == firsts
    shuffled = draw.sample(rows, len(rows))
    assert len(kept(cleaner(exact_duplicates=True), shuffled)) == len(firsts)


@settings(max_examples=25, deadline=None)
@given(st.lists(ROW, max_size=12), st.sampled_from([0.3, 0.8, 1.0]))
def test_what_is_an_exact_duplicate_is_a_near_one_too(rows: list[Content], threshold: float) -> None:
    exact = outcomes(cleaner(exact_duplicates=True), rows)
    near = outcomes(cleaner(near_duplicates=threshold), rows)
    assert all(other is not None for one, other in zip(exact, near, strict=True) if one is not None)


@settings(max_examples=25, deadline=None)
@given(st.lists(ROW, max_size=20), st.integers(0, 20), st.booleans())
def test_a_cleaner_goes_on_where_its_state_was_taken(rows: list[Content], at: int, pickled: bool) -> None:
    options = {"exact_duplicates": True, "near_duplicates": 0.7, "eval_overlap": 3}
    whole = cleaner(["one two three"], **options)
    expected = outcomes(whole, rows)
    first = cleaner(["one two three"], **options)
    head = outcomes(first, rows[:at])
    second = cleaner(["one two three"], **options)
    second.restore([first.news()])
    if pickled:
        second = pickle.loads(pickle.dumps(second))
    assert head + outcomes(second, rows[at:], first=at + 1) == expected


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=40), st.integers(1, 5), st.sets(st.integers(0, 40)), st.data())
def test_what_is_new_each_time_is_all_that_has_to_be_kept(
    numbers: list[int], limit: int, stops: set[int], data: st.DataObject
) -> None:
    """Law: news taken at any moments, joined in any groups, give a filter that decides as the one never stopped."""

    def made() -> Cleaner:
        one = cleaner(exact_duplicates=True, near_duplicates=1.0)
        assert one._exact is not None and one._near is not None
        one._exact.limit = one._near.limit = limit
        return one

    straight, one, parts = made(), made(), list[bytes]()
    for line, number in enumerate(numbers, start=1):
        if line in stops:
            parts.append(one.news())
            if data.draw(st.booleans(), label="written as one"):
                parts = [joined(reversed(parts))]
            if data.draw(st.booleans(), label="a new process"):
                one = made()
                one.restore(parts)
        row = Text(f"text number {number}")
        assert one.check(row, f"a:{line}") == straight.check(row, f"a:{line}")
    parts.append(one.news())
    assert one.notes == straight.notes
    assert all(state.num_rows <= 2 * limit for state in from_bytes(joined(reversed(parts))).values())


def test_reasons_name_the_earlier_row() -> None:
    one = cleaner(exact_duplicates=True)
    rows = [chat("hello", "hi"), chat("other", "hi"), chat(" hello\n", "hi ")]
    assert outcomes(one, rows) == [
        None,
        None,
        "the row says the same as 'rows.jsonl:1' (data.clean.exact_duplicates)",
    ]


@pytest.mark.parametrize("options", [{"exact_duplicates": True}, {"near_duplicates": 0.8}])
@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        (["a.jsonl:1", "a.jsonl:1"], [True, True]),  # repeat: 2 of one row
        (["a.jsonl:1", "a.jsonl:2", "a.jsonl:1", "a.jsonl:2"], [True, False, True, False]),
        (["a.json:1", "a.json:1"], [True, False]),  # two rows on a line
        (["a.json:1", "a.json:2", "a.json:1", "a.json:2"], [True, False, True, False]),
    ],
)
@pytest.mark.parametrize("stop", [0, 1, 2])
def test_a_row_that_comes_again_is_no_duplicate_of_itself(
    options: dict[str, Any], lines: list[str], kept: list[bool], stop: int
) -> None:
    one = cleaner(**options)
    found = []
    for number, line in enumerate(lines):
        if number == stop:
            news, one = one.news(), cleaner(**options)
            one.restore([news])
        found.append(one.check(chat("hello", "hi"), line) is None)
    assert found == kept


def test_what_teaches_something_else_is_no_duplicate() -> None:
    pair = ({"role": "assistant", "content": "yes"},), ({"role": "assistant", "content": "no"},)
    asked = ({"role": "user", "content": "well?"},)
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [
        Answers(asked, pair, "pair"),
        Answers(asked, pair[::-1], "pair"),
        Answers(asked, pair[:1], "label", {"label": (1.0,)}),
        Answers(asked, pair[:1], "label", {"label": (0.0,)}),
        conversation_from(messages),
        conversation_from(messages, [{"name": "f"}]),
        conversation_from(messages, None, {"enable_thinking": False}),
        conversation_from([*messages, *messages]),
        conversation_from([messages[0], {**messages[1], "train": False}, *messages]),
        chat("q", "A"),
    ]
    assert kept(cleaner(exact_duplicates=True), rows) == list(range(len(rows)))
    assert kept(cleaner(near_duplicates=0.5), rows[:4]) == [0, 1, 2, 3]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([0.5, 0.7, 0.9]))
def test_near_duplicates_follow_the_plain_similarity(seed: int, threshold: float) -> None:
    """Rows clearly above the threshold are found, rows clearly below are not: an oracle without MinHash."""
    draw = random.Random(seed)
    text = [f"{draw.choice(VOCABULARY)}{draw.randrange(99)}" for _ in range(400)]
    for changes in (1, 3, 8, 20, 60):
        other = list(text)
        for place in draw.sample(range(len(text)), changes):
            other[place] = "changed"
        exact = similarity(" ".join(text), " ".join(other))
        one = NearDuplicates(threshold)
        assert one.check(Text(" ".join(text)), "a:1") is None
        found = one.check(Text("\n".join(other).upper()), "a:2")
        if exact >= threshold + 0.2:
            assert found is not None and "like 'a:1' (data.clean.near_duplicates is" in found
        if exact <= threshold - 0.2:
            assert found is None


@pytest.mark.parametrize("threshold", [0.05, 0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 1.0])
def test_rows_at_the_threshold_meet(threshold: float) -> None:
    """The textbook's chance that two rows have a band in common, for every threshold that can be given."""
    one = NearDuplicates(threshold)
    assert one._bands * one._band_hashes <= 128
    chance = 1 - (1 - threshold**one._band_hashes) ** one._bands
    assert chance >= 0.95 or (one._bands, one._band_hashes) == (128, 1)


def test_the_docs_name_every_key() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data-inspect.md").read_text()
    assert all(f"`{key}" in page for key in CleanSection.model_fields)


def test_near_duplicates_look_past_shared_instructions() -> None:
    system = " ".join(f"rule{number} holds" for number in range(200))
    rows = [chat("How old is the oldest oak of this forest?", "Nine hundred years and some days.", system),
            chat("Which birds nest on the northern cliffs?", "Gulls do, and in some years puffins.", system),
            chat("How old is the oldest oak of this forest?", "Nine hundred years and some days.", "Be brief.")]  # fmt: skip
    assert kept(cleaner(near_duplicates=0.6), rows) == [0, 1]


def test_signatures_are_the_same_in_every_process() -> None:
    """They are kept in checkpoints: these numbers must never change."""
    one = NearDuplicates(0.8)
    assert gram_hashes(["a", "b", "c"], 2).tolist() == [16574885093320169317, 5566358545764685704]
    signature = one._signature(Text("the quick brown fox jumps over the lazy dog"))
    assert signature[:4].tolist() == [50584, 56698, 38510, 55104]


@given(st.lists(st.integers(0, 9), max_size=60), st.integers(1, 8))
def test_memory_is_bounded_and_what_is_remembered_counts(numbers: list[int], limit: int) -> None:
    one = ExactDuplicates(limit)
    seen: list[int] = []  # numbers that were kept, in order
    for line, number in enumerate(numbers):
        reason = one.check(Text(str(number)), f"a:{line}")
        assert len(one._seen) + len(one._before) <= 2 * limit
        if number in seen[-limit:]:
            assert reason is not None
        if reason is None:
            assert number not in seen[-limit:]
            seen.append(number)
        else:
            assert number in seen
    assert one.forgot == (len(seen) > 2 * limit)


def test_forgetting_is_told() -> None:
    one = cleaner(exact_duplicates=True)
    one._exact = ExactDuplicates(1)
    outcomes(one, [Text("a"), Text("b")])
    assert one.notes == []
    assert outcomes(one, [Text("c"), Text("a")]) == [None, None]
    (note,) = one.notes
    assert "data.clean.exact_duplicates compared each row with the latest 1 different ones at least" in note


@given(st.lists(st.sampled_from(VOCABULARY), max_size=30), st.lists(st.sampled_from(VOCABULARY), max_size=30), st.integers(1, 6))  # fmt: skip
def test_overlap_is_a_common_run_of_words(row: list[str], held_out: list[str], length: int) -> None:
    def runs(own: list[str]) -> set[tuple[str, ...]]:
        return {tuple(own[i : i + length]) for i in range(len(own) - length + 1)}

    one = cleaner([" - ".join(held_out).upper()], eval_overlap=length)
    reason = one.check(Text(" ".join(row)), "a:1")
    common = runs(row) & runs(held_out)
    assert (reason is not None) == bool(common)
    if reason is not None:
        shown = reason.rpartition(": ")[2].strip("'").split()
        assert tuple(shown) in common


def test_overlap_needs_held_out_rows() -> None:
    with pytest.raises(ConfigError, match=r"data\.clean\.eval_overlap compares with held-out rows"):
        cleaner(eval_overlap=5)
    assert outcomes(cleaner([], eval_overlap=5), [Text("a b c d e f")]) == [None]


@given(st.text(max_size=20), st.integers(1, 12), st.integers(1, 12))
def test_lengths_in_characters(text: str, low: int, high: int) -> None:
    reason = cleaner(min_characters=low, max_characters=high).check(Text(text), "a:1")
    assert (reason is None) == (low <= len(text) <= high)
    if reason is not None:
        assert reason.startswith(f"the row has {len(text)} characters, ")


def test_languages() -> None:
    texts = {
        "en": [
            "How are you today? I hope that all is well with you and yours.",
            "List three primary colours.",
        ],
        "de": ["Wie geht es dir heute? Ich hoffe, dass alles gut ist.", "Nenne drei Grundfarben, bitte."],
        "fr": ["La capitale de la France est Paris, et elle est très belle."],
        "zh": ["你好,今天天气怎么样?"],
    }
    rows = [(language, chat(text, text)) for language, own in texts.items() for text in own]
    for wanted in (["en"], ["de", "fr"], ["zh"]):
        one = cleaner(languages=wanted)
        for language, row in rows:
            reason = one.check(row, "a:1")
            assert (reason is None) == (language in wanted), (language, wanted)
            assert reason is None or f"the row is in '{language}'" in reason
    neither: list[Content] = [Text("2 + 2 = 4"), Text("def f(x): return x + 1"), Text(""), Text("  ")]
    assert kept(cleaner(languages=["en"]), neither) == [0, 1, 2, 3]


def test_an_unknown_language_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"data\.clean\.languages\[1\]: the language EN is not known; did you mean en\?"
    ):
        cleaner(languages=["de", "EN"])
    with pytest.raises(ConfigError, match="known are af, am, an, ar"):
        cleaner(languages=["english!"])


@pytest.mark.parametrize(("key", "value"), [("near_duplicates", 0.8), ("languages", ["en"])])
def test_a_missing_library_is_told_with_its_command(
    key: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib

    def absent(name: str) -> Any:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(
        ConfigError, match=rf'data\.clean\.{key} needs the package .*pip install "luthier\[clean\]"'
    ):
        cleaner(**{key: value})


def test_without_the_extra_the_rest_works(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        assert not name.startswith(("datasketch", "py3langid")), "only asked for when it is needed"
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    one = cleaner(exact_duplicates=True, min_characters=2, max_characters=9)
    assert kept(one, [Text("one"), Text("one"), Text("o"), Text("two")]) == [0, 3]


def test_the_key_tells_options_apart() -> None:
    options = [
        {},
        {"exact_duplicates": True},
        {"near_duplicates": 0.8},
        {"near_duplicates": 0.9},
        {"max_characters": 9},
    ]
    keys = [cleaner(**one).key for one in options]
    assert len(set(keys)) == len(keys) and cleaner(near_duplicates=0.8).key == keys[2]


def test_nothing_asked_for_is_false() -> None:
    assert not cleaner() and cleaner(exact_duplicates=True) and cleaner(languages=["en"])
    assert outcomes(cleaner(), [Text("a"), Text("a")]) == [None, None]


@given(st.lists(st.tuples(st.text(max_size=5), st.none() | st.integers(0, 2**40 - 3)), max_size=20))
def test_places_come_back(pairs: list[tuple[str, int | None]]) -> None:
    places = Places()
    names = [file if line is None else f"{file}:{line}" for file, line in pairs]
    numbers = [places.number(name) for name in names]
    again = Places.from_state(places.state())
    assert [places.where(number) for number in numbers] == names
    assert [again.where(number) for number in numbers] == names


def test_said_leaves_instructions_out_and_keeps_the_rest() -> None:
    call = {"function": {"name": "look", "arguments": {"b": 1, "a": "x"}}}
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": None, "reasoning_content": "R", "tool_calls": [call]},
        {"role": "tool", "content": "T"},
        {"role": "assistant", "content": "A"},
    ]
    assert said(conversation_from(messages)) == 'Q\nR\nlook {"a": "x", "b": 1}\nT\nA'
    assert said(TokenIds(np.array([1, 2], np.int32), np.ones(2, np.float32))) == ""
    assert words("Don't STOP 你好 now_2 ﬁne") == ["don", "t", "stop", "你", "好", "now_2", "fine"]
