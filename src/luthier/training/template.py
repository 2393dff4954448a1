"""The chat template of a run, and what a person should know about it."""

from datetime import datetime
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from luthier.config.tree import Config
from luthier.data.batch import Example
from luthier.data.chat import ChatTemplate
from luthier.errors import ConfigError, DataError
from luthier.evaluate.answers import asks, question_of


def build_template(config: Config, tokenizer: PreTrainedTokenizerFast) -> tuple[ChatTemplate | None, str]:
    """The model's own chat template, or the one that `data.template` names; without one the reason why.

    A model without a chat template can learn from plain text.
    """
    source = None
    if config.data.template is not None:
        try:
            source = Path(config.data.template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"data.template {config.data.template} cannot be read: {error}") from error
        tokenizer.chat_template = source  # so that it is saved with what is trained
    try:
        now = None if config.data.date is None else datetime.fromisoformat(config.data.date)
        return ChatTemplate(tokenizer, None, config.data.template_args, now), ""
    except DataError as error:
        if source is not None:
            raise
        return None, str(error)


def template_notes(
    template: ChatTemplate | None, first: Example, tokenizer: PreTrainedTokenizerFast
) -> list[str]:
    """What a person should know about the template.

    Templates of reasoning models write an empty block of thoughts into answers without any, but not into the
    prompt for a new answer unless they are told to; the model would then be asked in other words than it learned.
    """
    if template is None or not asks(first):
        return []
    notes = []
    if not template.closes_turns:
        notes.append(
            "the chat template ends answers without a token of their own, so when to stop is not learned"
        )
    prompt = question_of(first, tokenizer).prompt
    if not prompt.rstrip().endswith(template.generation_prompt.rstrip()):
        notes.append(
            f"note: rows are learned after {prompt[-60:]!r}, but a new answer is asked for with "
            f"{template.generation_prompt!r}. To make them equal, give the template the variable that closes the "
            "gap, such as data.template_args.enable_thinking=false."
        )
    return notes
