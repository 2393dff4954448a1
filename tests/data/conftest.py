"""Fixtures for the tests of the data floor."""

import pytest
from transformers import PreTrainedTokenizerFast

from chat_samples import CHATML, byte_level


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer that speaks ChatML."""
    made = byte_level()
    made.chat_template = CHATML
    return made
