"""What of the model is trained: new adapters, one that is gone on with, or all weights."""

from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedModel

from luthier.config.lora_section import LoraSection
from luthier.config.tree import Config
from luthier.data.batch import collate
from luthier.data.loader import Dataset
from luthier.data.pack import pack
from luthier.errors import ConfigError
from luthier.models.adapter_files import attach_adapter, attach_beside
from luthier.models.adapter_plan import CONFIG_NAME
from luthier.models.lora import adapters_called, apply_lora
from luthier.models.lora_beside import add_adapter
from luthier.models.lora_experts import stacked_names
from luthier.models.lora_init import needs_originals, needs_rows
from luthier.models.lora_original import begin_from_originals
from luthier.models.lora_watch import begin_from_rows
from luthier.models.policy import Policy
from luthier.runs.folder import RunFolder
from luthier.training.rows import Say
from luthier.training.tune import open_weights

LOOKED_AT_TOKENS = 8192
"""How many tokens of the user's rows adapters start from, where they do."""


def adapt(
    config: Config, model: PreTrainedModel, tokens: list[int], besides: list[str], say: Say = print
) -> str:
    """Puts adapters into the model, with modules `besides` that are trained whole, or opens the weights that the
    section `tune` chooses, or all; returns which. `say` is told what takes long.

    Raises:
        ConfigError: `lora.start` names no adapter, or the run trains what that cannot have.
    """
    lora = config.lora
    if config.tune is not None:
        return open_weights(config, model, besides, say)
    if lora is None:
        model.requires_grad_(True)
        return "full fine-tuning"
    if lora.start is not None:
        told = _go_on(config, lora, lora.start, model, [*map(str, tokens), *besides])
        return told + _add_others(config, lora, model)
    report = apply_lora(
        model,
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        rslora=lora.rslora,
        target=lora.target,
        ranks=lora.ranks,
        alphas=lora.alphas,
        layers=lora.layers,
        init=lora.init,
        dora=lora.dora,
        train_a=lora.train_a,
        modules_to_save=[*lora.modules_to_save, *besides],
        tokens=tokens,
        train_tokens=config.model.train_new_tokens,
        generator=torch.Generator().manual_seed(config.seed % 2**63),
        bias=lora.bias,
        experts=lora.experts,
        restarts=lora.restart.times if lora.restart is not None else 0,
    )
    stacked = 0 if lora.experts else len(stacked_names(model))
    kept = f"; {stacked} stacked tensors of experts stay as they are (lora.experts)" if stacked else ""
    return f"{kind_of(lora)} on {len(report.targets)} layers{kept}" + _add_others(config, lora, model)


def _add_others(config: Config, lora: LoraSection, model: PreTrainedModel) -> str:
    """Puts the further adapters of `lora.adapters` on the model; says which.

    Raises:
        ConfigError: one of them cannot be had.
    """
    told = ""
    for number, (name, one) in enumerate(lora.adapters.items()):
        key = f"lora.adapters.{name}"
        if one.start is not None:
            layers = attach_beside(model, name, _folder(one.start, f"{key}.start"), trained=one.train)
        elif needs_rows(one.init) is not None:
            raise ConfigError(
                f"{key}.init is {one.init}, which looks at rows and is for lora.init only; choose another one"
            )
        else:
            layers = add_adapter(
                model,
                name,
                rank=one.rank,
                alpha=one.alpha,
                dropout=lora.dropout,
                rslora=one.rslora,
                target=one.target,
                generator=torch.Generator().manual_seed((config.seed + number + 1) % 2**63),
                ranks=one.ranks,
                alphas=one.alphas,
                layers=one.layers,
                init=one.init,
                train_a=one.train_a,
            )
        for module in adapters_called(model, name).values():
            module.dropout = _dropout(model, lora)
            module.lora_A.requires_grad_(one.train and one.train_a)
            module.lora_B.requires_grad_(one.train)
        told += f"; adapter {name} on {len(layers)} layers, {'trained' if one.train else 'frozen'}"
    return told


def _dropout(model: PreTrainedModel, lora: LoraSection) -> float:
    """That of the first adapter: layers that read the same input have one."""
    found = adapters_called(model, "").values()
    return next((one.dropout for one in found), lora.dropout)


def begin_adapters(config: Config, policy: Policy, rows: Dataset, folder: Path) -> list[str]:
    """Starts adapters from the user's rows or the model's original weights in `folder`, where `lora.init` looks at
    them; returns what to say of it.

    The rows are drawn by the seed, the same on every rank. To be called before anything is learned or read back.
    """
    lora = config.lora
    if lora is not None and lora.start is None and needs_originals(lora.init):
        number = begin_from_originals(policy.model, lora.init, folder)
        return [f"{number} adapters started by {lora.init} from what the stored weights lost"]
    needs = needs_rows(lora.init) if lora is not None and lora.start is None else None
    if lora is None or needs is None:
        return []
    lengths = np.minimum(rows.lengths, config.train.micro_tokens)
    order = np.random.default_rng([config.seed, 6]).permutation(len(lengths))
    number = max(1, int(np.searchsorted(np.cumsum(lengths[order]), LOOKED_AT_TOKENS)))
    device = next(policy.parameters()).device
    chosen = order[:number]
    batches = (
        collate([rows.example(int(chosen[position])) for position in places]).to(device)
        for places in pack(lengths[chosen], config.train.micro_tokens)
    )
    told = begin_from_rows(policy, lora.init, batches, spread=lora.eva_rho)
    return [
        f"adapters started by {lora.init} from the {needs} of {int(lengths[chosen].sum()):,} tokens{told}"
    ]


def kind_of(lora: LoraSection) -> str:
    """The adapters in a few words: `DoRA rank 16, started by pissa`."""
    words = f"{'DoRA' if lora.dora else 'LoRA'} rank {lora.rank}"
    if lora.ranks:
        words += f" ({', '.join(f'{name} {rank}' for name, rank in lora.ranks.items())})"
    words += f", started by {lora.init}" if lora.init != "kaiming" else ""
    words += f", layers {lora.layers}" if lora.layers is not None else ""
    words += {"none": "", "lora_only": ", biases of these", "all": ", all biases"}[lora.bias]
    words += f", {lora.restart.times} restarts" if lora.restart is not None else ""
    return words + (", A frozen" if not lora.train_a else "")


def _go_on(config: Config, lora: LoraSection, start: str, model: PreTrainedModel, besides: list[str]) -> str:
    folder = _folder(start, "lora.start")
    if besides:
        what = (
            "new tokens (model.new_tokens)"
            if config.model.new_tokens
            else f"a head of its own ({besides[0]})"
        )
        raise ConfigError(
            f"lora.start names an adapter, and this run trains {what}, which that adapter has not. Merge it first "
            "(`luthier export`), and give the merged model as model.name"
        )
    report = attach_adapter(model, folder)
    for module in adapters_called(model, "").values():
        module.lora_A.requires_grad_(lora.train_a)
    return f"going on with the adapter of {folder} on {len(report.targets)} layers"


def _folder(start: str, key: str) -> Path:
    """The folder with the adapter that a setting names, which may be a run."""
    folder = Path(start)
    if not (folder / CONFIG_NAME).is_file():
        folder = RunFolder(folder).adapter
    if not (folder / CONFIG_NAME).is_file():
        raise ConfigError(
            f"{key} is {start}, where there is no {CONFIG_NAME}. Name the folder of an adapter, or that of a run that "
            "has finished"
        )
    return folder
