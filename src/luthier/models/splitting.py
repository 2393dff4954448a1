"""How a tokenizer splits text before it merges bytes, under the name that llama.cpp knows it by (`tokenizer.ggml.pre`).

llama.cpp has the rules built in and is told only their name, so a wrong name means other tokens than in training, and
nothing would say so. A rule without a name here is refused; and what a file's name says is what it is read with.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from tokenizers import Regex, pre_tokenizers

from luthier.errors import ModelError

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CASED = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
UPPER = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

DIGITS, GPT2, BYTES = "each digit alone", "GPT-2's rule", "bytes"
RULES: Mapping[tuple[str, ...], str] = {
    (GPT2,): "gpt-2",
    (DIGITS, GPT2): "smollm",
    (rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{REST}", BYTES): "qwen2",
    (rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*"
     r"|\s*[\r\n]+|\s+(?!\S)|\s+", BYTES): "qwen35",
    (rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{REST}", BYTES): "dbrx",
    (rf"{CASED}{CONTRACTIONS}?|{UPPER}{CONTRACTIONS}?|\p{{N}}{{1,3}}|{CASED_REST}", BYTES): "gpt-4o",
    (rf"{CASED}|{UPPER}|\p{{N}}|{CASED_REST}", BYTES): "tekken",
}  # fmt: skip
IGNORING_MERGES = {"dbrx": "llama-bpe"}
"""A rule has another name where whole words are looked up before merging (`ignore_merges`)."""


def name_of(tokenizer: Mapping[str, Any]) -> str:
    """The name of the rule of a tokenizer that merges bytes. tokenizer: what tokenizer.json holds.

    Raises ModelError for a rule that llama.cpp does not have, or that is not known here.
    """
    rule = tuple(_parts(tokenizer["pre_tokenizer"]))
    normalizer = tokenizer.get("normalizer")
    if rule not in RULES or (normalizer and normalizer["type"] != "NFC"):
        raise ModelError(
            "this tokenizer splits text by a rule that has no known name in llama.cpp, which would tokenize "
            f"differently: {' then '.join(rule)}{', after ' + normalizer['type'] if normalizer else ''}. "
            "Export the merged model, and convert it with a tool that knows the model."
        )
    name = RULES[rule]
    return IGNORING_MERGES.get(name, name) if tokenizer["model"].get("ignore_merges") else name


def ignores_merges(name: str) -> bool:
    """Whether whole words are looked up before merging under this name."""
    return name in IGNORING_MERGES.values()


def named(name: str) -> pre_tokenizers.Sequence | None:
    """What splits text by the rule of this name; None if it is not known here."""
    usual = {special: name for name, special in IGNORING_MERGES.items()}
    steps = next((steps for steps, own in RULES.items() if own == usual.get(name, name)), None)
    return None if steps is None else pre_tokenizers.Sequence([_step(step) for step in steps])


def _step(step: str) -> Any:
    if step == DIGITS:
        return pre_tokenizers.Digits(individual_digits=True)
    if step in (GPT2, BYTES):
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=step == GPT2)
    return pre_tokenizers.Split(Regex(step), "isolated")


def _parts(rule: Mapping[str, Any]) -> Iterator[str]:
    """The steps in order, each as the text that `RULES` has for it."""
    kind = rule["type"]
    if kind == "Sequence":
        for part in rule["pretokenizers"]:
            yield from _parts(part)
    elif kind == "Digits" and rule["individual_digits"]:
        yield DIGITS
    elif kind == "ByteLevel" and not rule["add_prefix_space"]:
        yield GPT2 if rule.get("use_regex", True) else BYTES
    elif (
        kind == "Split"
        and rule["behavior"] == "Isolated"
        and not rule["invert"]
        and "Regex" in rule["pattern"]
    ):
        # a possessive quantifier changes nothing in these rules
        yield rule["pattern"]["Regex"].replace("]?+", "]?").replace("]++", "]+")
    else:
        yield json.dumps(rule)
