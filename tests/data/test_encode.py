"""Every kind of content to tokens: what is learned, what is shared, what becomes of rows that are too long."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from chat_samples import THINKING, sentence_piece
from encode_samples import (
    TEXTS,
    assistant,
    chat,
    conversations,
    encoder,
    learned,
    one,
    refused,
    speaker,
    user,
)
from luthier.data.chat import ChatTemplate
from luthier.data.content import Answers, Content, Pieces, Prompt, Steps, Text, TokenIds
from luthier.data.conversation import Conversation, conversation_from
from luthier.data.draft import sequences
from luthier.data.encode import EncodedRow, EncodeOptions, RowEncoder
from luthier.data.encode_chat import STEP_SEPARATOR, STEP_WEIGHT
from luthier.errors import DataError, RowRefused


@st.composite
def contents(draw: st.DrawFn) -> Content:
    kind = draw(st.integers(0, 6))
    if kind == 0:
        return draw(conversations())
    if kind == 1:
        return Text(draw(TEXTS))
    if kind == 2:
        ids = draw(st.lists(st.integers(-1, 700), max_size=9))
        weights = [draw(st.sampled_from((0.0, 1.0, 0.5))) for _ in ids]
        return TokenIds(np.array(ids, dtype=np.int32), np.array(weights, dtype=np.float32))
    if kind == 3:
        return Pieces(tuple(draw(st.lists(st.tuples(TEXTS, st.booleans()), max_size=4))))
    if kind == 4:
        answers = tuple((assistant(text),) for text in draw(st.lists(TEXTS, min_size=1, max_size=4)))
        return Answers((user(draw(TEXTS)),), answers, "ranking")
    steps = tuple(draw(st.lists(TEXTS, min_size=1, max_size=4)))
    if kind == 5:
        return Steps((user(draw(TEXTS)),), steps, tuple(float(i % 2) for i in range(len(steps))))
    return Prompt((user(draw(TEXTS)),))


def comparable(row: EncodedRow | RowRefused) -> Any:
    if isinstance(row, RowRefused):
        return str(row)
    parts = [
        (s.ids.tolist(), s.weights.tolist(), s.parent) for example in row.examples for s in example.segments
    ]
    return parts, row.text, row.status, row.reason, row.left_out


@given(st.lists(contents(), max_size=6), st.sampled_from((None, "drop", "split", "truncate_response")))
@settings(max_examples=60)
def test_what_a_row_becomes_does_not_depend_on_its_neighbours(rows: list[Content], overlong: str) -> None:
    made = encoder(40, overlong=overlong)
    together = [comparable(row) for row in made.encode(rows)]
    assert together == [comparable(made.encode([row])[0]) for row in rows]
    for row in made.encode(rows):
        if isinstance(row, EncodedRow):
            assert all(0 < len(example) <= 40 for example in row.examples)
            assert all(segment.weights.dtype == np.float32 for e in row.examples for segment in e.segments)


@given(conversations())
@settings(max_examples=40)
def test_a_conversation_is_what_the_template_makes_of_it(conversation: Conversation) -> None:
    made = encoder()
    (example,) = one(made, conversation).examples
    (segment,) = example.segments
    encoded = ChatTemplate(speaker()).encode(conversation)
    assert segment.ids.tolist() == encoded.ids.tolist()
    assert segment.weights.tolist() == encoded.weights.tolist()


@given(TEXTS, st.integers(2, 12))
def test_text_is_learned_whole_with_its_end_and_split_into_blocks(text: str, block: int) -> None:
    tokenizer = speaker()
    wanted = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    row = one(encoder(block), Text(text))
    ids = [segment.ids.tolist() for example in row.examples for segment in example.segments]
    assert all(len(part) == block for part in ids[:-1])
    assert [ids[0][0], *(number for part in ids for number in part[1:])] == wanted
    assert all(after[0] == before[-1] for before, after in pairwise(ids)), (
        "a block goes on from the one before"
    )
    weights = [segment.weights.tolist() for example in row.examples for segment in example.segments]
    assert weights == [[float(n == 0), *[1.0] * (len(part) - 1)] for n, part in enumerate(ids)]
    assert row.status == "kept"


def test_what_the_tokenizer_puts_around_texts_is_there_once() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=sentence_piece().backend_tokenizer, bos_token="<s>", eos_token="</s>"
    )
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    made = RowEncoder(tokenizer, None, EncodeOptions(100))
    inner = tokenizer("word words", add_special_tokens=False)["input_ids"]
    for text in ("word words", "<s>word words", "word words</s>", "<s>word words</s>"):
        ((segment,),) = (example.segments for example in one(made, Text(text)).examples)
        assert segment.ids.tolist() == [bos, *inner, eos], text
        assert segment.weights[1:].all()


def test_conversations_need_a_template_and_text_does_not(tokenizer: PreTrainedTokenizerFast) -> None:
    made = RowEncoder(tokenizer, None, EncodeOptions(100), no_template="choose an instruct model")
    assert one(made, Text("word")).text == "word"
    with pytest.raises(DataError, match="choose an instruct model"):
        made.encode([chat("a", "b")])


@given(st.lists(TEXTS, min_size=1, max_size=4), TEXTS)
@settings(max_examples=40)
def test_each_sequence_of_judged_answers_is_its_own_conversation(answers: list[str], question: str) -> None:
    content = Answers(
        (user(question),),
        tuple((assistant(text),) for text in answers),
        "ranking",
        {"score": tuple(float(i) for i in range(len(answers)))},
    )
    (example,) = one(encoder(), content).examples
    alone = [ChatTemplate(speaker()).encode(content.conversation(i)) for i in range(len(answers))]
    found = sequences(example)
    assert [ids.tolist() for ids, _ in found] == [one.ids.tolist() for one in alone]
    assert [weights.tolist() for _, weights in found] == [one.weights.tolist() for one in alone]
    assert example.columns == {"score": tuple(float(i) for i in range(len(answers)))}
    if len(answers) > 1:
        root, *children = example.segments
        assert root.parent == -1 and not root.weights.any()
        assert [child.parent for child in children] == [0] * len(answers)
        length = min(len(one.ids) for one in alone)
        same = [len({tuple(one.ids[:n].tolist()) for one in alone}) == 1 for n in range(length + 1)]
        first = min(int(np.flatnonzero(one.weights)[0]) for one in alone)
        assert len(root.ids) == min(max(n for n in range(length + 1) if same[n]), first)


def test_a_pair_of_equal_answers_has_nothing_to_prefer() -> None:
    pair = Answers((user("q"),), ((assistant("a"),), (assistant("a"),)), "pair")
    assert "the chosen and the rejected answer are the same" in refused(encoder(), pair)


@given(st.lists(TEXTS, min_size=1, max_size=5), st.data())
@settings(max_examples=40)
def test_labels_of_steps_stand_behind_their_last_tokens(steps: list[str], data: st.DataObject) -> None:
    labels = tuple(data.draw(st.sampled_from((-1.0, 0.0, 1.0, 0.5))) for _ in steps)
    made = encoder()
    row = one(made, Steps((user("q"),), tuple(steps), labels))
    (segment,) = row.examples[0].segments
    ends = np.flatnonzero(segment.weights)
    assert (segment.weights[ends] - STEP_WEIGHT).tolist() == list(labels)
    tokenizer = speaker()
    for number, end in enumerate(ends):
        text = str(tokenizer.decode(segment.ids[:end].tolist()))
        answer = STEP_SEPARATOR.join(steps[: number + 1])
        assert text.rstrip().endswith(answer), "the separator may be one token with the last sign"


def test_a_prompt_ends_where_the_model_begins_to_write() -> None:
    made = encoder()
    row = one(made, Prompt((user("word"),), {"answer": 4}))
    (segment,) = row.examples[0].segments
    assert segment.ids.tolist() == ChatTemplate(speaker()).prompt_ids([user("word")])
    assert not segment.weights.any()
    assert "contains '<|im_end|>'" in refused(made, Prompt((user("a<|im_end|>"),)))


def test_ids_from_elsewhere_are_checked() -> None:
    made = encoder()
    ids = np.array([1, 2, 3], dtype=np.int32)
    (segment,) = one(made, TokenIds(ids, np.array([0, 1, 0.5], dtype=np.float32))).examples[0].segments
    assert segment.ids.tolist() == [1, 2, 3] and segment.weights.tolist() == [0, 1, 0.5]
    assert "all targets masked" in refused(made, TokenIds(ids, np.zeros(3, dtype=np.float32)))
    assert "has 3 token ids, but 2 labels" in refused(made, TokenIds(ids, np.ones(2, dtype=np.float32)))
    for wrong in (-1, 5000):
        content = TokenIds(np.array([1, wrong], dtype=np.int32), np.ones(2, dtype=np.float32))
        assert f"the token id {wrong} is none of the tokenizer's" in refused(made, content)


def test_pieces_are_one_text_unless_a_token_lies_across_an_edge() -> None:
    made, tokenizer = encoder(), speaker()
    clean = Pieces((("<s>word words", False), ("\n", False), (" word", True), ("</s>", True)))
    assert learned(made, clean) == [" word</s>"]
    (segment,) = one(made, clean).examples[0].segments
    assert segment.ids.tolist() == tokenizer("<s>word words\n word</s>")["input_ids"]
    across = Pieces((("word", False), ("less", True)))
    (segment,) = one(made, across).examples[0].segments
    assert segment.ids.tolist() == [*tokenizer("word")["input_ids"], *tokenizer("less")["input_ids"]]
    assert learned(made, across) == ["less"]
    assert "no piece of this row is to be learned" in refused(made, Pieces((("word", False),)))


@pytest.mark.parametrize(
    ("learn", "wanted"),
    [
        ("answers", ["b<|im_end|>", "d<|im_end|>"]),
        ("last", ["d<|im_end|>"]),
        (("user",), ["a<|im_end|>", "c<|im_end|>"]),
        (("system", "assistant"), ["s<|im_end|>", "b<|im_end|>", "d<|im_end|>"]),
    ],
)
def test_what_is_learned_can_be_chosen(learn: str | tuple[str, ...], wanted: list[str]) -> None:
    assert learned(encoder(learn=learn), chat("a", "b", "c", "d", system="s")) == wanted


def test_all_of_the_text_can_be_learned_except_what_a_message_takes_away() -> None:
    everything = encoder(learn="all")
    assert learned(everything, chat("a", "b")) == [one(everything, chat("a", "b")).text]
    but_one = conversation_from([user("a"), assistant("b"), {**user("c"), "train": False}, assistant("d")])
    text = one(everything, but_one).text
    before, after = text.split("<|im_start|>user\nc<|im_end|>\n")
    assert learned(everything, but_one) == [before, after]
    assert "no message of the roles in data.learn (tool)" in refused(encoder(learn=("tool",)), chat("a", "b"))


def test_weights_of_messages_become_weights_of_tokens() -> None:
    content = conversation_from([user("a"), {**assistant("b"), "weight": 0.5}, user("c"), assistant("d")])
    (segment,) = one(encoder(), content).examples[0].segments
    assert sorted(set(segment.weights.tolist())) == [0.0, 0.5, 1.0]
    assert segment.weights[segment.weights == 0.5].size == segment.weights[segment.weights == 1].size


SWITCHED = THINKING.replace(
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}",
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}"
    "{%- if enable_thinking is defined and not enable_thinking -%}{{- '<think>\n\n</think>\n\n' -}}{%- endif -%}"
    "{%- endif -%}",
)


def test_thinking_is_switched_by_the_run_and_by_the_row() -> None:
    prompts = [encoder(source=SWITCHED, thinking=thinking) for thinking in (None, True, False)]
    asked = [one(made, Prompt((user("q"),))).text.endswith("</think>\n\n") for made in prompts]
    assert asked == [False, False, True]
    own = Prompt((user("q"),), template_args={"enable_thinking": True})
    assert not one(prompts[2], own).text.endswith("</think>\n\n")
    assert prompts[2].notes == ()
    assert "has no switch for it" in encoder(thinking=False).notes[0]
    # What is written for an answer without thinking is prompt, however it is switched.
    assert {tuple(learned(made, chat("q", "a"))) for made in prompts} == {("a<|im_end|>",)}


def test_key_names_all_that_changes_the_tokens() -> None:
    makers = [
        encoder(), encoder(20), encoder(overlong="drop"), encoder(learn="all"), encoder(thinking=True),
        encoder(source=THINKING),
    ]  # fmt: skip
    makers.append(RowEncoder(speaker(), ChatTemplate(speaker(), None, {"x": 1}), EncodeOptions(10_000)))
    makers.append(RowEncoder(speaker(), None, EncodeOptions(10_000)))
    assert len({made.key for made in makers}) == len(makers)
    assert encoder().key == encoder().key
