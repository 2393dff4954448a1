"""Rows of an answer in steps, each judged: `{"prompt": …, "completions": […], "labels": […]}`."""

from typing import Any

from luthier.data.content import Steps
from luthier.data.conversation import checked_messages
from luthier.data.dialogue import with_system
from luthier.data.turns import Tags, one_or_more_turns
from luthier.data.values import in_words, number_in, unpacked
from luthier.errors import RowRefused

SHAPES = (("prompt", "completions", "labels"),)
OPTIONAL = ("system", "system_prompt")
YIELDS = ()


def convert(record: dict[str, Any], tags: Tags) -> Steps:
    """The question, the steps of its answer, and how good each one is. Raises RowRefused."""
    context = with_system(one_or_more_turns(record["prompt"], tags, "prompt", "user"), record)
    steps, labels = (unpacked(record[name], f"`{name}`") for name in ("completions", "labels"))
    for name, value in (("completions", steps), ("labels", labels)):
        if not isinstance(value, list):
            raise RowRefused(f"`{name}` is {in_words(value)}, not a list with a value for each step")
    if not steps:
        raise RowRefused("`completions` is an empty list, so there is no step")
    if len(steps) != len(labels):
        raise RowRefused(f"`completions` has {len(steps)} steps, `labels` has {len(labels)} values")
    for number, step in enumerate(steps, start=1):
        if not isinstance(step, str):
            raise RowRefused(f"step {number} of `completions` is {in_words(step)}, not text")
    values = tuple(number_in(label, f"label {number} of `labels`") for number, label in enumerate(labels, 1))
    return Steps(tuple(checked_messages(context)[0]), tuple(steps), values)
