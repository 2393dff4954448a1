"""Rows of prompts that the model answers itself (reinforcement learning), with any columns its reward needs."""

from typing import Any

from luthier.data.content import Prompt
from luthier.data.dialogue import BESIDE, CHAT_COLUMNS, instruction_turns, prompt_of, with_system
from luthier.data.turns import Tags, one_or_more_turns, turns_in_text

SHAPES = (("prompt",),)
OPTIONAL = CHAT_COLUMNS
YIELDS = ("messages", "preference", "sharegpt", "unpaired")


def convert(record: dict[str, Any], tags: Tags) -> Prompt:
    """The prompt as messages; every other column is kept, also those that are asked together with a text.

    Raises RowRefused.
    """
    given = record["prompt"]
    if isinstance(given, str) and turns_in_text(given) is None and any(map(record.get, BESIDE)):
        return prompt_of(instruction_turns(record, "prompt"), record, "prompt")
    turns = with_system(one_or_more_turns(given, tags, "prompt", "user"), record)
    return prompt_of(turns, record, "prompt")
