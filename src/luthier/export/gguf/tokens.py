"""A tokenizer in the form that llama.cpp reads: tokens by id with their types, and how text becomes tokens.

Two kinds are written. `gpt2` merges bytes in the order of a list of merges. `llama` is SentencePiece's: spaces are ▁,
and of all neighbours those are joined first whose union has the highest score; a score here is minus the place of the
merge that makes the token, which gives the same order.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gguf.constants import TokenType

from luthier.errors import ModelError
from luthier.models import splitting

PHI3_NAMES = ("phi-3", "phi3")
"""Part of a model's name in lower case, at which llama.cpp lets all special tokens swallow white space but these:"""
PHI3_KEEP = frozenset({"<unk>", "<s>", "<|endoftext|>"})
PHI3_NEEDS = PHI3_KEEP | {"</s>"}
BYTE = re.compile(r"<0x[0-9A-F]{2}>")
SPECIAL = {"bos": "bos_token_id", "eos": "eos_token_id", "unknown": "unk_token_id", "padding": "pad_token_id"}


@dataclass(frozen=True)
class Vocabulary:
    """All that `tokenizer.ggml.*` says."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] | None = None
    merges: list[str] | None = None
    special: dict[str, int] = field(default_factory=dict)
    """Ids by what llama.cpp calls them: bos, eos, eot, unknown, padding."""
    adds: dict[str, bool] = field(default_factory=dict)
    """Whether bos, eos, or a space before the text is added (`add_space_prefix`)."""
    templates: str | list[dict[str, str]] | None = None
    swallows: bool = False
    """Whether special tokens swallow the white space behind them, as Phi-3's do."""

    def name_for(self, name: str) -> str:
        """The name of the model in the file. llama.cpp knows by it whether special tokens swallow white space."""
        found = name.lower()
        if self.swallows and not any(mark in found for mark in PHI3_NAMES):
            return f"{name} ({PHI3_NAMES[0]})"
        return name if self.swallows else re.sub("phi-?3", "phi 3", name, flags=re.IGNORECASE)


def vocabulary(tokenizer: Any, size: int, ends: list[int]) -> Vocabulary:
    """What a tokenizer is in a GGUF file.

    Args:
        tokenizer: a fast tokenizer of transformers.
        size: rows of the token embeddings; rows without a token get a name that no text has.
        ends: ids that end an answer; the first that is no `eos` becomes `eot`.

    Raises ModelError for a kind of tokenizer, or a rule of it, that llama.cpp does not have.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            "only tokenizers with a tokenizer.json can be written into a GGUF, and this model has none."
        )
    told = json.loads(tokenizer.backend_tokenizer.to_str())
    if told["model"]["type"] != "BPE":
        raise ModelError(
            f"this tokenizer is a {told['model']['type']} model; those that merge (BPE, SentencePiece's BPE) can be "
            "written into a GGUF. Export the merged model instead."
        )
    tokens, types = _tokens(told, size)
    ids = {name: getattr(tokenizer, attribute) for name, attribute in SPECIAL.items()}
    special = {name: value for name, value in ids.items() if value is not None}
    if others := [end for end in ends if end != special.get("eos")]:
        special["eot"] = others[0]
    templates = _templates(tokenizer.chat_template)
    shared = {"special": special, "templates": templates, "swallows": _swallows(told, str(templates))}
    adds = _adds(tokenizer)
    if told["model"].get("byte_fallback"):
        for token in (token for token in tokens if BYTE.fullmatch(token)):
            types[told["model"]["vocab"][token]] = TokenType.BYTE
        adds["space_prefix"] = _begins_with_space(tokenizer)
        return Vocabulary("llama", "default", tokens, types, _scores(told, tokens), None, adds=adds, **shared)
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in told["model"]["merges"]]
    return Vocabulary("gpt2", splitting.name_of(told), tokens, types, None, merges, adds=adds, **shared)


def _tokens(told: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Texts and types by id."""
    tokens = [f"[PAD{i}]" for i in range(size)]
    types = [int(TokenType.UNUSED)] * size
    added = {token["id"]: token for token in told["added_tokens"]}
    highest = max(*told["model"]["vocab"].values(), *added, 0)
    if highest >= size:
        raise ModelError(f"the tokenizer has a token {highest}, and the model rows for {size} tokens only.")
    for text, number in told["model"]["vocab"].items():
        tokens[number], types[number] = text, TokenType.NORMAL
    for number, token in added.items():
        tokens[number] = token["content"]
        types[number] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    unknown = told["model"].get("unk_token")
    if unknown is not None and told["model"].get("byte_fallback"):
        types[told["model"]["vocab"][unknown]] = TokenType.UNKNOWN
    return tokens, [int(kind) for kind in types]


def _scores(told: Mapping[str, Any], tokens: list[str]) -> list[float]:
    """Minus the place of the first merge that makes the token; below all of them where none does."""
    place: dict[str, int] = {}
    for number, pair in enumerate(told["model"]["merges"]):
        place.setdefault("".join(pair if isinstance(pair, list) else pair.split(" ")), number)
    return [-float(place.get(token, len(place) + number)) for number, token in enumerate(tokens)]


def _swallows(told: Mapping[str, Any], templates: str) -> bool:
    """Whether the special tokens that templates write swallow white space as llama.cpp lets those of Phi-3 do it.

    Raises ModelError if some do it otherwise.
    """
    used = [token for token in told["added_tokens"] if token["content"] in templates]
    right = {token["content"] for token in used if token["rstrip"]}
    left = {token["content"] for token in used if token["lstrip"]}
    known = {token["content"] for token in told["added_tokens"]} | told["model"]["vocab"].keys()
    if not left | right:
        return False
    if left or right != {token["content"] for token in used} - PHI3_KEEP or not known >= PHI3_NEEDS:
        raise ModelError(
            f"these special tokens swallow white space beside them: {', '.join(sorted(left | right))}. llama.cpp lets "
            "only those of Phi-3 do so, and would read prompts differently."
        )
    return True


def _adds(tokenizer: Any) -> dict[str, bool]:
    """Whether text is given a beginning and an end."""
    ids = tokenizer("a").input_ids
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return {
        "bos_token": bos is not None and ids[:1] == [bos],
        "eos_token": eos is not None and len(ids) > 1 and ids[-1] == eos,
    }


def _begins_with_space(tokenizer: Any) -> bool:
    """Whether the tokenizer puts a space before a text."""
    first, *_ = tokenizer("a", add_special_tokens=False).input_ids
    return str(tokenizer.convert_ids_to_tokens(first)).startswith("▁")


def _templates(template: Any) -> str | list[dict[str, str]] | None:
    """One template, or several by name with the usual one among them."""
    if not isinstance(template, dict):
        return template
    return [{"name": name, "template": text} for name, text in template.items()]
