"""Selective precision: layers of a config's model measured on its own rows, and what leaving the worst saves."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from luthier.config.tree import Config
from luthier.data.batch import Batch, collate
from luthier.data.loader import Dataset
from luthier.data.pack import pack
from luthier.errors import ConfigError
from luthier.kernels.quant.base import Scheme
from luthier.models.base import base_folder
from luthier.models.device import pick_device, pick_dtype
from luthier.models.load import load_model, load_tokenizer
from luthier.models.policy import Policy
from luthier.models.quantised.chosen import chosen
from luthier.models.quantised.precision import (
    Damage,
    budget_bytes,
    choose,
    mean_loss,
    measure,
    stored_in_place,
)
from luthier.models.quantised.unpack import stored_as
from luthier.models.tripwire import choose_policy
from luthier.parallel.cluster import Cluster
from luthier.training.build import build_data, build_method
from luthier.training.template import build_template

MICRO_TOKENS = 2048


@dataclass(frozen=True)
class Found:
    """What was measured, and what is proposed."""

    damages: list[Damage]
    left: list[str]
    """Layers to leave as they are: `quant.skip`."""
    budget: int
    taken: int
    """Bytes that all linear layers take then."""
    plain_loss: float
    stored_loss: float
    chosen_loss: float
    """Nats per learned token: with no layer stored, with all, and with all but those."""
    held_out: bool
    """Whether these are of held-out rows; else of rows that were measured with."""


def find_precision(
    config: Config,
    budget: str | None,
    tokens: int,
    scratch: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Found:
    """Measures each layer that `quant` would store, on `tokens` tokens of the config's rows.

    Raises:
        ConfigError: there is nothing to store, the model is stored already, or the method trains another head.
    """
    folder = base_folder(config)
    quantisation = chosen(config)
    if quantisation is None:
        raise ConfigError(
            "the config has no section quant, so there is nothing to measure; add `quant: nf4`."
        )
    if kind := stored_as(folder):
        raise ConfigError(
            f"the config names a model that is stored as {kind} already; name the one that it was made from."
        )
    tokenizer = load_tokenizer(
        config.model.name, revision=config.model.revision, offline=config.offline, new_tokens=None
    )
    template = build_template(config, tokenizer)
    data = build_data(config, tokenizer, template, Cluster(), lambda line: None, scratch)
    try:
        if build_method(config).head(data.labels) is not None:
            raise ConfigError(
                f"method {config.method.name} trains a model that scores, which is not measured; measure with "
                "`method: sft`."
            )
        device = pick_device(config.model.device)
        model = load_model(folder, pick_dtype(config.model.dtype, device), device)
        policy = choose_policy(model, config.model.packing, config.max_length).policy
        seen = draw(data.train, config.seed, tokens, device)
        judged = draw(data.held_out, config.seed, tokens, device) if data.held_out is not None else seen
    finally:
        data.close()
    damages = measure(policy, quantisation, seen, progress)
    allowed = budget_bytes(budget, damages)
    left = choose(damages, allowed)
    taken = sum(one.plain_bytes if one.name in left else one.stored_bytes for one in damages)
    names = [one.name for one in damages]
    stored = [[], names, [name for name in names if name not in left]]
    losses = _losses(policy, judged, stored, quantisation.scheme)
    return Found(damages, left, allowed, taken, *losses, held_out=data.held_out is not None)


def draw(rows: Dataset, seed: int, tokens: int, device: torch.device) -> list[Batch]:
    """Batches with about so many tokens of the rows, drawn by the seed; longer rows than a batch are left out."""
    lengths = np.asarray(rows.lengths)
    order = np.random.default_rng([seed, 8]).permutation(np.flatnonzero(lengths <= MICRO_TOKENS))
    if not len(order):
        raise ConfigError(
            f"all rows have more than {MICRO_TOKENS} tokens; set data.max_length to at most that."
        )
    number = max(1, int(np.searchsorted(np.cumsum(lengths[order]), tokens)))
    picked = order[:number]
    return [
        collate([rows.example(int(picked[position])) for position in places]).to(device)
        for places in pack(lengths[picked], MICRO_TOKENS)
    ]


def _losses(policy: Policy, batches: list[Batch], stored: list[list[str]], scheme: Scheme) -> list[float]:
    found = []
    for names in stored:
        with torch.no_grad(), stored_in_place(policy.model, names, scheme):
            found.append(mean_loss(policy, batches))
    return found
