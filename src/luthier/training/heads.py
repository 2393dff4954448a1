"""Runs that train a head of another kind: its model, and what is checked and saved besides."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from luthier.config.tree import Config
from luthier.data.draft import sequences
from luthier.data.loader import Dataset
from luthier.errors import ConfigError
from luthier.models.head_files import save_head
from luthier.models.head_policy import HeadPolicy
from luthier.models.load import load_tokenizer
from luthier.models.quantised.load import Quantisation
from luthier.models.value_head import Head, load_with_head, module_name

LOOKED_AT = 256
"""Rows whose last tokens are looked at, when a padding token is chosen."""


def check_head(config: Config, head: Head | None) -> None:
    """Refuses settings that have no meaning for a model that does not write.

    Raises:
        ConfigError: `eval.metrics` asks for written answers.
    """
    if head is not None and config.eval.metrics:
        raise ConfigError(
            f"eval.metrics ({', '.join(config.eval.metrics)}) are of written answers, but method "
            f"{config.method.name} trains a model that scores and does not write. Leave them out: loss and metrics of "
            "the method on held-out rows are measured in any case."
        )


def load_head_model(
    config: Config,
    head: Head,
    rows: Dataset,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    quantisation: Quantisation | None = None,
) -> PreTrainedModel:
    """The model with its head and a padding token that no row ends with."""
    name, revision = config.model.name, config.model.revision
    tokenizer = load_tokenizer(
        name, revision=revision, offline=config.offline, new_tokens=config.model.new_tokens
    )
    pad = pick_padding(tokenizer, last_tokens(rows))
    model = load_with_head(
        folder, dtype, device, head, pad_token_id=pad, seed=config.seed, quantisation=quantisation
    )
    if (size := model.config.get_text_config().hidden_size) < head.least_size:
        raise ConfigError(
            f"method {config.method.name} is to train the first {head.least_size} numbers of each vector, but those of "
            f"{name} have {size}. Lower method.dims."
        )
    return model


def policy_maker(head: Head) -> Any:
    """Makes policies for the head, of a model, a layout and a shape of logits."""
    return partial(HeadPolicy, kind=head)


def modules_to_train(model: PreTrainedModel, head: Head | None) -> list[str]:
    """What is trained whole beside an adapter: the head's own layer."""
    return [name] if head is not None and (name := module_name(model)) else []


def last_tokens(rows: Dataset) -> set[int]:
    """The tokens that the first rows end with."""
    examples = (rows.example(index) for index in range(min(LOOKED_AT, len(rows.lengths))))
    return {int(ids[-1]) for example in examples for ids, _ in sequences(example)}


def pick_padding(tokenizer: PreTrainedTokenizerFast, last: set[int]) -> int | None:
    """A token to pad with: the tokenizer's own, unless rows end with it, else another special one.

    transformers reads the score at the last token that is not padding, so a row that ends with the padding token
    would be read one token too early.
    """
    pad, eos, unknown = tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id
    wanted = [pad, unknown, eos, *tokenizer.all_special_ids, *sorted(tokenizer.added_tokens_decoder)]
    return next((token for token in wanted if isinstance(token, int) and token not in last), None)


def save_head_files(
    policy: HeadPolicy, folder: Path, config: Config, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Writes what goes with the head beside the weights, and sets the tokenizer's padding token to the model's."""
    text = policy.model.config.get_text_config()
    if isinstance(text.pad_token_id, int):
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(text.pad_token_id)
    save_head(
        policy.kind,
        folder,
        hidden_size=text.hidden_size,
        max_length=config.max_length,
        pad_token_id=text.pad_token_id,
    )
