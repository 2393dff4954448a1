"""Rows of prompts that the model answers itself (reinforcement learning), with any columns its reward needs."""

from typing import Any

from luthier.data.content import Prompt
from luthier.data.dialogue import CHAT_COLUMNS, prompt_of, with_system
from luthier.data.turns import Tags, one_or_more_turns

SHAPES = (("prompt",),)
OPTIONAL = CHAT_COLUMNS
YIELDS = ("messages", "preference", "sharegpt", "unpaired")


def convert(record: dict[str, Any], tags: Tags) -> Prompt:
    """The prompt as messages; every other column is kept. Raises RowRefused."""
    turns = with_system(one_or_more_turns(record["prompt"], tags, "prompt", "user"), record)
    return prompt_of(turns, record, "prompt")
