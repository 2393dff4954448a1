"""Tokens that a tokenizer and its model do not have yet: added, given room, given something to start from.

A new token starts as the mean of the embeddings of the words that describe it, or of all tokens. Its logit is then
the mean of theirs, so it is never likelier than they are on average (Jensen): what the model did before hardly
changes. Tokens without words all start alike; training tells them apart.

Shape suffixes: V vocabulary, D hidden size, N new tokens.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import AddedToken, PreTrainedModel

from luthier.models.lora_targets import input_embeddings, output_embeddings
from luthier.models.quantised import embeddings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

MOST_PADDING = 128


@dataclass(frozen=True)
class NewTokens:
    """What was added to a tokenizer."""

    ids: dict[str, int]
    """The added tokens, with their ids."""
    words: dict[str, tuple[int, ...]]
    """For each the ids of the words that describe it; empty: none do."""
    present: dict[str, int]
    """Tokens that were asked for and are in the vocabulary already; they stay what they are."""
    known: int
    """Tokens of the vocabulary before."""

    @property
    def needed(self) -> int:
        """Rows that the embeddings must have."""
        return max(self.ids.values(), default=-1) + 1

    def note(self) -> str:
        """What a person should be told."""
        parts = []
        if self.ids:
            described = sum(map(bool, self.words.values()))
            starts = [f"{described} from the words that describe them"] * bool(described)
            starts += [f"{len(self.ids) - described} from the mean of all"] * (described < len(self.ids))
            parts.append(f"new tokens {', '.join(self.ids)}: {' and '.join(starts)}")
        if self.present:
            there = ", ".join(f"{token} ({number})" for token, number in self.present.items())
            parts.append(f"in the vocabulary already, left as they are: {there}")
        return "; ".join(parts)


def add_tokens(tokenizer: "PreTrainedTokenizerFast", wanted: Mapping[str, str]) -> NewTokens:
    """Adds tokens to the tokenizer, in place: `wanted` has each with words for it, or with an empty text.

    They are no special tokens: rows may contain them, and decoding writes them. A token that the vocabulary has is
    not added again.
    """
    known = tokenizer.get_vocab()
    present = {token: known[token] for token in wanted if token in known}
    missing = {token: words for token, words in wanted.items() if token not in known}
    words = {
        token: tuple(tokenizer(words, add_special_tokens=False).input_ids) for token, words in missing.items()
    }
    added: list[str | AddedToken] = [AddedToken(token, special=False, normalized=False) for token in missing]
    if added:
        tokenizer.add_tokens(added)
    now = tokenizer.get_vocab()
    ids = {token: now[token] for token in missing}
    return NewTokens(ids, words, present, max(known.values(), default=-1) + 1)


def place_tokens(model: PreTrainedModel, tokens: NewTokens) -> None:
    """Gives the model rows for the tokens, in place, and something to start from in embedding, head and its bias.

    Rows that the model has but no token uses are taken first.
    """
    if not tokens.ids:
        return
    make_room(model, tokens.needed)
    with torch.no_grad():
        for weight in _own(token_weights(model)):
            wide = torch.promote_types(weight.dtype, torch.float32)
            mean = weight[: tokens.known].mean(0, dtype=wide)
            for token, number in tokens.ids.items():
                words = list(tokens.words[token])
                weight[number] = weight[words].to(wide).mean(0) if words else mean


def make_room(model: PreTrainedModel, needed: int) -> int:
    """Rows that the model's embeddings had before; now they have at least `needed`, and a round number of them.

    New rows are the mean of the others, always the same for the same model.
    """
    before = num_rows(model)
    if needed <= before or not before:
        return before
    grown = rounded_up(needed, before)
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # transformers draws new rows, which are written over below
        model.resize_token_embeddings(grown, mean_resizing=False)
    with torch.no_grad():
        for weight in _own(token_weights(model)):
            if weight.device.type != "meta":
                weight[before:] = mean_row(weight[:before])
    return before


@contextmanager
def room_for(model: nn.Module, needed: int) -> Iterator[None]:
    """`make_room`, undone if what is within fails."""
    if not isinstance(model, PreTrainedModel):
        yield
        return
    before = make_room(model, needed)
    try:
        yield
    except BaseException:
        if num_rows(model) != before:
            model.resize_token_embeddings(before, mean_resizing=False)
        raise


def num_rows(model: PreTrainedModel) -> int:
    """Rows of the model's embeddings; 0 if it has none that it tells of."""
    embedding = input_embeddings(model)
    return 0 if embedding is None else embeddings.num_rows(embedding)


def rounded_up(needed: int, before: int) -> int:
    """As many rows as needed, and as round a number as the model has (a multiple of the same power of two)."""
    multiple = min(MOST_PADDING, before & -before)
    return -(-needed // multiple) * multiple


def mean_row(weight_VD: Tensor) -> Tensor:
    """The mean of all rows, summed in at least fp32, in the dtype of the weight."""
    wide = torch.promote_types(weight_VD.dtype, torch.float32)
    return weight_VD.mean(0, dtype=wide).to(weight_VD.dtype)


def token_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """What has an entry for each token, by name: embeddings, and a head of its own with its bias."""
    modules = [module for module in (input_embeddings(model), output_embeddings(model)) if module is not None]
    found: dict[str, Tensor] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if any(module is each for each in modules):
            found |= {f"{name}.{part}": weight for part, weight in module.named_parameters()}
    return found


def _own(weights: Mapping[str, Tensor]) -> list[Tensor]:
    """Each tensor once."""
    return list({id(weight): weight for weight in weights.values()}.values())
