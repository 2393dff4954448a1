"""Tokens that are added to the vocabulary."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from luthier.config.source import read_file
from luthier.config.tree import ModelSection
from luthier.errors import ConfigError
from luthier.migrate.draft import Draft, Rule
from luthier.migrate.readers import names, text

_TARGET = "model.new_tokens"
_NOTE = "they start as the mean of all tokens, unless they get words for what they stand for"


def adds_tokens(read: Callable[[Any], list[str]] = names) -> Rule:
    """Adds the tokens that `read` gives to `model.new_tokens`."""

    def rule(draft: Draft, key: str, value: Any) -> None:
        _put(draft, key, dict.fromkeys(read(value), ""), _NOTE)

    return rule


def adds_described_tokens(draft: Draft, key: str, value: Any) -> None:
    """Adds the tokens of a YAML file, each with its description."""
    file = Path(text(value))
    try:
        described = read_file(file).values
    except ConfigError:
        draft.none(key, f"{file} is not here; write its tokens and their words into {_TARGET}")
        return
    _put(draft, key, {token: str(words or "") for token, words in described.items()}, "")


def _put(draft: Draft, key: str, tokens: dict[str, str], note: str) -> None:
    if not tokens:
        draft.needless(key, "is empty")
        return
    if "new_tokens" not in ModelSection.model_fields:
        draft.none(key, f"no tokens are added: {', '.join(tokens)}")
        return
    already = draft.values.get("model", {}).get("new_tokens", {})
    draft.map(key, _TARGET, already | tokens, note)
