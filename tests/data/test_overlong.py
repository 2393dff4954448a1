"""Rows that are too long: whole exchanges go, the oldest first, and nothing is cut inside a message."""

import random
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from luthier.data.chat import ChatTemplate
from luthier.data.conversation import conversation_from
from luthier.data.learn import lesson_of
from luthier.data.overlong import exchanges, without_oldest
from luthier.errors import RowRefused


def messages(roles: str, words: int = 3) -> list[dict[str, Any]]:
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": names[role], "content": f"{role}{i} " + "word " * words} for i, role in enumerate(roles)]


@pytest.mark.parametrize(
    ("roles", "leading", "groups"),
    [
        ("ua", [], [[0, 1]]),
        ("suaua", [0], [[1, 2], [3, 4]]),
        ("uuaaua", [], [[0, 1, 2, 3], [4, 5]]),
        ("uataua", [], [[0, 1, 2, 3], [4, 5]]),
        ("aua", [], [[0], [1, 2]]),
        ("suasua", [0], [[1, 2, 3], [4, 5]]),
        ("uau", [], [[0, 1], [2]]),
    ],
)
def test_exchanges(roles: str, leading: list[int], groups: list[list[int]]) -> None:
    assert exchanges(conversation_from(messages(roles))) == (leading, groups)


def test_the_longest_end_that_fits_is_kept_with_the_system_message(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    template = ChatTemplate(tokenizer)
    draw = random.Random(0)
    for _ in range(60):
        roles = "s" * draw.randint(0, 1) + "".join(
            draw.choice(["ua", "uua", "uata", "uaa"]) for _ in range(draw.randint(1, 6))
        )
        conversation = conversation_from(messages(roles, draw.randint(0, 6)))
        whole = len(template.encode(conversation).ids)
        limit = draw.randint(1, whole + 5)
        leading, groups = exchanges(conversation)
        ends = [
            conversation.part([*leading, *(number for group in groups[i:] for number in group)])
            for i in range(len(groups))
        ]
        fitting = [i for i, end in enumerate(ends) if len(template.encode(end).ids) <= limit and i > 0]
        if whole <= limit:
            continue
        if not fitting:
            with pytest.raises(
                RowRefused, match=f"longer than {limit} tokens, and so is its last exchange alone"
            ):
                without_oldest(lesson_of(conversation), limit, template.encode)
            continue
        shortened = without_oldest(lesson_of(conversation), limit, template.encode)
        (encoded,) = shortened.parts
        assert shortened.what == f"its {min(fitting)} oldest exchanges are left out"
        assert encoded.text == template.encode(ends[min(fitting)]).text
        assert len(encoded.ids) <= limit and encoded.targets.any()


def test_what_is_left_has_something_to_learn(tokenizer: PreTrainedTokenizerFast) -> None:
    template = ChatTemplate(tokenizer)
    rows = messages("uauau")
    rows[3]["train"] = False
    conversation = conversation_from(rows)
    limit = len(template.encode(conversation).ids) - 1
    with pytest.raises(RowRefused, match="so is its last exchange alone"):
        without_oldest(lesson_of(conversation), limit, template.encode)  # only the first exchange is learned
