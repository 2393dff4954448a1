"""Rows that are too long, whatever their kind and whatever is to be done with them."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chat_samples import THINKING
from encode_samples import assistant, chat, conversations, encoder, learned, one, refused, user
from luthier.data.content import Answers
from luthier.data.conversation import Conversation, conversation_from
from luthier.data.encode import RowTooLong
from luthier.errors import RowRefused


@given(conversations(), st.integers(8, 120))
@settings(max_examples=60)
def test_split_conversations_teach_every_answer_once(conversation: Conversation, most: int) -> None:
    made = encoder(most, overlong="split")
    answers = [f"{m['content']}<|im_end|>" for m in conversation.messages if m["role"] == "assistant"]
    (row,) = made.encode([conversation])
    if isinstance(row, RowRefused):
        assert "and so is each of its exchanges alone" in str(row)
        return
    shown = made.pieces(row)
    found = [text for pieces in shown for text, is_learned in pieces if is_learned]
    if "left out" not in (row.reason or ""):
        assert found == answers
    rest = iter(answers)
    assert all(text in rest for text in found), "what is left is in order, each once"
    for pieces in shown:
        whole = "".join(text for text, _ in pieces)
        if conversation.messages[0]["role"] == "system":
            assert whole.startswith(f"<|im_start|>system\n{conversation.messages[0]['content']}<|im_end|>")
    assert (row.status == "kept") == (len(shown) == 1 and row.reason is None)


@given(st.integers(2, 6), st.sampled_from(("all", ("system", "assistant"))))
@settings(max_examples=10)
def test_split_conversations_teach_the_system_message_once(num_exchanges: int, learn: str) -> None:
    texts = [text for i in range(num_exchanges) for text in (f"word {i}", f"words {i}")]
    made = encoder(40, overlong="split", learn=learn)
    row = one(made, chat(*texts, system="quick fox"))
    assert len(row.examples) > 1
    shown = made.pieces(row)
    assert all("quick fox" in "".join(text for text, _ in pieces) for pieces in shown)
    in_learned = [
        "quick fox" in "".join(text for text, is_learned in pieces if is_learned) for pieces in shown
    ]
    assert in_learned == [True] + [False] * (len(shown) - 1)
    everything = "".join(text for pieces in shown for text, is_learned in pieces if is_learned)
    assert all(everything.count(f"words {i}<|im_end|>") == 1 for i in range(num_exchanges))


@given(conversations(), st.integers(8, 120))
@settings(max_examples=60)
def test_a_cut_answer_keeps_its_header_its_end_and_all_that_fits(
    conversation: Conversation, most: int
) -> None:
    whole = one(encoder(), conversation)
    made = encoder(most, overlong="truncate_response")
    (row,) = made.encode([conversation])
    if isinstance(row, RowRefused):
        assert "cutting the text of its last answer does not help" in str(row)
        shortest = replace(conversation, messages=[*conversation.messages[:-1], assistant("a")])
        assert len(one(encoder(), shortest).examples[0]) >= most
        return
    (before,), (after,) = encoder().pieces(whole), made.pieces(row)
    assert [text for text, is_learned in after if not is_learned] == [
        t for t, is_learned in before if not is_learned
    ]
    *same, last = (text for text, is_learned in after if is_learned)
    *others, full = (text for text, is_learned in before if is_learned)
    assert same == others and last.endswith("<|im_end|>")
    assert full.startswith(last.removesuffix("<|im_end|>"))
    if row.status == "truncated":
        assert len(row.examples[0]) > most - 8, "no more is cut than needed"
        assert f"more than the {most} of data.max_length; the last" in (row.reason or "")


@given(
    conversations(),
    st.integers(8, 120),
    st.sampled_from(("truncate_oldest_turns", "truncate_response", "split")),
)
@settings(max_examples=60)
def test_no_cut_leaves_a_question_without_its_header_or_an_answer_without_its_end(
    conversation: Conversation, most: int, overlong: str
) -> None:
    made = encoder(most, overlong=overlong)
    (row,) = made.encode([conversation])
    if isinstance(row, RowRefused):
        return
    for pieces in made.pieces(row):
        assert len(pieces) % 2 == 1, "prompt, answer, prompt, answer, white space"
        for (prompt, _), (answer, is_learned) in zip(pieces[::2], pieces[1::2], strict=False):
            assert is_learned and prompt.endswith("<|im_start|>assistant\n") and answer.endswith("<|im_end|>")


def test_a_cut_never_reaches_tool_calls_or_reasoning() -> None:
    call = {"function": {"name": "look", "arguments": {"place": "here"}}}
    text = "word " * 30
    calling = conversation_from([user("q"), {**assistant(text.strip()), "tool_calls": [call]}])
    made = encoder(60, THINKING, overlong="truncate_response")
    assert '{"name": "look", "arguments": {"place": "here"}}' in learned(made, calling)[0]
    thinking = chat("q", f"<think>{text}</think>word")
    assert "does not help" in refused(encoder(30, THINKING, overlong="truncate_response"), thinking)


def test_judged_answers_lose_their_oldest_exchanges_together() -> None:
    context = tuple(m for i in range(4) for m in (user(f"word {i}"), assistant(f"words {i}")))
    content = Answers(
        (*context, user("q")), ((assistant("a"),), (assistant("b c"),)), "pair", {"margin": (1.0, 0.0)}
    )
    made = encoder(50, overlong="truncate_oldest_turns")
    row = one(made, content)
    assert row.status == "truncated" and "oldest exchanges are left out" in (row.reason or "")
    (first, second) = made.pieces(row)
    assert (
        first[0] == second[0] and first[1] == ("a<|im_end|>", True) and second[1] == ("b c<|im_end|>", True)
    )
    assert len(row.examples[0]) <= 50 and row.examples[0].columns == {"margin": (1.0, 0.0)}
    assert "cannot be shortened by data.overlong 'split'" in refused(encoder(50, overlong="split"), content)


def test_too_long_rows_are_dropped_or_stop_the_run() -> None:
    long = chat("q", "word " * 50 + "a")
    assert "tokens, more than the 20 of data.max_length" in refused(encoder(20), long)
    with pytest.raises(RowTooLong, match=r"raise it, or choose another data\.overlong") as caught:
        encoder(20, overlong="error").encode([chat("q", "a"), long])
    assert caught.value.index == 1
