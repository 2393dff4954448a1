"""Heads of other kinds: what a model can be trained to say besides the next token.

    score       numbers for each sequence, read at its last token: rewards, classes, relevance
    steps       numbers for each prediction, read at the token that it is made from: process rewards
    embedding   one vector for each sequence, pooled from its hidden states; no weights of its own

Models are those of transformers' own classes, so that what is saved is loaded by them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
)

from luthier.errors import ModelError
from luthier.models.compat import without_load_report
from luthier.models.load import reading_weights
from luthier.models.quantised.load import Quantisation, how_stored, load_quantised

CLASSES: dict[str, Any] = {
    "score": AutoModelForSequenceClassification,
    "steps": AutoModelForTokenClassification,
    "embedding": AutoModel,
}
TASKS = {"score": "SEQ_CLS", "steps": "TOKEN_CLS", "embedding": "FEATURE_EXTRACTION"}
"""What PEFT calls them."""
_MODULES = ("score", "classifier")


@dataclass(frozen=True)
class Head:
    """Which head a method trains."""

    kind: Literal["score", "steps", "embedding"]
    labels: tuple[str, ...] = ()
    """A name for each number that it says; none for an embedding."""
    problem: Literal["regression", "single_label_classification"] | None = None
    """What transformers takes the labels for."""
    pooling: Literal["last", "mean"] = "last"
    """Of an embedding: the hidden state of the last token, or the mean over all tokens."""
    least_size: int = 1
    """Of an embedding: so many numbers its vectors must have."""


def configure(config: Any, head: Head, pad_token_id: int | None = None) -> Any:
    """Writes into a model's configuration what transformers must know of the head; returns the configuration.

    Without `pad_token_id` that of the model stays.
    """
    for part in {id(part): part for part in (config, config.get_text_config())}.values():
        if pad_token_id is not None:
            part.pad_token_id = pad_token_id
        if head.kind != "embedding":
            part.id2label = dict(enumerate(head.labels))
            part.label2id = {name: number for number, name in enumerate(head.labels)}
            part.problem_type = head.problem
            part.classifier_dropout = 0.0
    return config


def load_with_head(
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    head: Head,
    *,
    pad_token_id: int | None = None,
    seed: int = 0,
    quantisation: Quantisation | None = None,
) -> PreTrainedModel:
    """The model in `folder` with such a head: its own, if it was saved with one, else a new one drawn by `seed`.
    With `quantisation` its linear layers are stored in few bits, the head never.

    Raises:
        ModelError: transformers has no such model, it lacks weights, or it has another number of labels.
    """
    with reading_weights(folder), without_load_report():
        config = configure(
            AutoConfig.from_pretrained(folder, local_files_only=True), head, pad_token_id=pad_token_id
        )
        kind = CLASSES[head.kind]
        how = how_stored(folder, quantisation)
        if how is not None:
            model, found = load_quantised(kind, folder, dtype, how, config)
        else:
            model, found = kind.from_pretrained(
                folder, config=config, dtype=dtype, local_files_only=True, output_loading_info=True
            )
    name = module_name(model)
    lost = sorted(
        key for key in found["missing_keys"] if head.kind == "embedding" or not key.startswith(f"{name}.")
    )
    if lost:
        raise ModelError(f"the model in {folder} lacks weights that {type(model).__name__} needs: {lost[0]}")
    if found["missing_keys"]:
        draw_head(model, seed)
    return model.to(device).eval()  # pyright: ignore[reportArgumentType]


def module_name(model: PreTrainedModel) -> str:
    """The name of the head's linear layer in the model, wrapped or not.

    Raises:
        ModelError: it has none that is read as one.
    """
    for name in _MODULES:
        if isinstance(getattr(model, name, None), nn.Module):
            return name
    if type(model) is type(model.base_model):
        return ""
    raise ModelError(
        f"{type(model).__name__} has no head called {' or '.join(_MODULES)}, so it is not known what to train. "
        "Take a model of another family."
    )


def draw_head(model: PreTrainedModel, seed: int) -> None:
    """Gives the head new weights, the same for a seed on every rank and device: normal, spread as in its family."""
    module = model.get_submodule(module_name(model))
    spread = getattr(model.config.get_text_config(), "initializer_range", None) or 0.02
    generator = torch.Generator().manual_seed(seed % 2**63)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator) * spread
            parameter.copy_(drawn if name == "weight" else torch.zeros(()))


def head_values(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """What the head makes of hidden states [.., D]: [.., labels], in at least fp32."""
    module: Any = model.get_submodule(module_name(model))
    wide = torch.promote_types(hidden.dtype, torch.float32)
    bias = getattr(module, "bias", None)
    return nn.functional.linear(
        hidden.to(wide), module.weight.to(wide), None if bias is None else bias.to(wide)
    )


def task_of(model: nn.Module) -> str:
    """What PEFT calls what the model is for, by its class."""
    name = type(model).__name__
    if name.endswith("ForSequenceClassification"):
        return TASKS["score"]
    if name.endswith("ForTokenClassification"):
        return TASKS["steps"]
    base: Any = getattr(model, "base_model", None)
    return TASKS["embedding"] if base is model else "CAUSAL_LM"
