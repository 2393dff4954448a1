"""Adapters of the library peft on tiny models: every type that is registered, whatever version is installed."""

import warnings
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.config.peft_types import REFUSED, needed, peft_types
from luthier.data.batch import Batch, collate
from luthier.models.peft_adapters.attach import apply_peft
from luthier.models.peft_adapters.held import PeftAdapter
from luthier.models.policy import Policy
from tiny_models import tiny_smollm
from training_parts import chat_rows

SMALLER: dict[str, dict[str, Any]] = {
    "adaption_prompt": {"adapter_len": 3, "adapter_layers": 2},
    "c3a": {"block_size": 16},
    "cartridge": {"num_virtual_tokens": 3},
    "fourierft": {"n_frequency": 40},
    "frod": {"progressbar": False},
    "miss": {"r": 8},
    "p_tuning": {"num_virtual_tokens": 3, "encoder_hidden_size": 16},
    "prefix_tuning": {"num_virtual_tokens": 3},
    "prompt_tuning": {"num_virtual_tokens": 3},
    "psoft": {"r": 8},
    "road": {"group_size": 8},
    "shira": {"r": 4},
    "trainable_tokens": {"token_indices": list(range(4, 97))},
    "vblora": {"vector_length": 8, "num_vectors": 32},
    "waveft": {"n_frequency": 40},
}
"""Settings for types whose own defaults are too large for a model of 32 numbers a token."""


IDS = torch.arange(4, 44).reshape(2, 20)


def types() -> list[str]:
    """Every type that the installed peft registers and that is not refused here."""
    return sorted((peft_types() or {}).keys() - REFUSED.keys())


def options(kind: str) -> dict[str, Any]:
    """Settings of a type for a tiny model."""
    given = SMALLER.get(kind, {})
    assert needed(kind).keys() <= given.keys(), f"peft_parts.SMALLER lacks what {kind} needs"
    return dict(given)


def adapted(kind: str, seed: int = 1) -> tuple[PreTrainedModel, PeftAdapter]:
    """A tiny model with a new adapter; skips where the type needs a library that is not there."""
    model = tiny_smollm()
    if kind == "adamss":
        pytest.importorskip("sklearn")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model, apply_peft(model, kind, options(kind), seed=seed)


def batch() -> Batch:
    """Ten documents end to end."""
    rows = chat_rows(10)
    return collate([rows.example(index) for index in range(10)])


@cache
def trained(kind: str, steps: int = 12, lr: float = 2e-2) -> tuple[PreTrainedModel, PeftAdapter, list[float]]:
    """The same after a few steps over one batch, and the losses. Shared: leave its weights as they are."""
    model, adapter = adapted(kind)
    policy, rows = Policy(model, "packed"), batch()
    weights = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
    torch.manual_seed(0)
    losses = []
    policy.train()
    for _ in range(steps):
        loss = -policy(rows).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    policy.eval()
    return model, adapter, losses


@torch.no_grad()
def logits(model: PreTrainedModel) -> Tensor:
    """What a model says of two texts through transformers' own forward, [2, T, V]."""
    plain = Policy(model, "plain").eval()
    return plain.model(input_ids=IDS, use_cache=False).logits
