"""From a config to the objects of a run: the only place where settings become things."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast

import luthier.methods
import luthier.optim
from luthier.allocator import keep_pages
from luthier.config.plugins import load_plugin
from luthier.config.tree import Config
from luthier.data.chat import ChatTemplate
from luthier.data.ledger import Ledger
from luthier.data.loader import Dataset, StepSource, hold_out
from luthier.data.prepare import TokenDataset, prepare
from luthier.errors import ConfigError, DataError
from luthier.evaluate.answers import Question
from luthier.kernels import native
from luthier.methods.base import Method
from luthier.models.activations.assemble import plan_activations
from luthier.models.device import pick_device, pick_dtype
from luthier.models.fused.check import fuse_checked
from luthier.models.load import load_model, resolve_model
from luthier.models.lora import LoraReport, apply_lora
from luthier.models.policy import Policy
from luthier.models.regional import compile_layers
from luthier.models.tripwire import choose_policy
from luthier.optim.schedules import Schedule
from luthier.parallel.cluster import Cluster
from luthier.places import cache_folder
from luthier.training.loop import Trainer

Say = Callable[[str], None]
CPU_MICRO_TOKENS = 2048


@dataclass(frozen=True)
class Data:
    """The rows of a run, tokenised, and what became of each."""

    train: Dataset
    held_out: Dataset | None
    ledgers: dict[str, Ledger]
    notes: tuple[str, ...]
    """What a person should be told once."""


def build_template(config: Config, tokenizer: PreTrainedTokenizerFast) -> ChatTemplate:
    """The model's own chat template, or the one that `data.template` names."""
    source = None
    if config.data.template is not None:
        try:
            source = Path(config.data.template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"data.template {config.data.template} cannot be read: {error}") from error
        tokenizer.chat_template = source  # so that it is saved with what is trained
    return ChatTemplate(tokenizer, source, config.data.template_args)


def prompt_notes(template: ChatTemplate, question: Question) -> list[str]:
    """Says so if the model would later be asked in other words than it is trained on.

    Templates of reasoning models write an empty block of thoughts into answers without any, but not into the
    prompt for a new answer unless they are told to.
    """
    if question.prompt.rstrip().endswith(template.generation_prompt.rstrip()):
        return []
    return [
        f"note: rows are learned after {question.prompt[-60:]!r}, but a new answer is asked for with "
        f"{template.generation_prompt!r}. To make them equal, give the template the variable that closes the "
        "gap, such as data.template_args.enable_thinking=false."
    ]


def build_data(config: Config, template: ChatTemplate, cluster: Cluster, say: Say) -> Data:
    """Reads, renders and tokenises the rows. The main rank goes first, so that the others find the cache."""

    def tokens(paths: list[str], what: str) -> TokenDataset:
        def progress(rows: int) -> None:
            say(f"{what}: {rows} rows read")

        return prepare(
            paths,
            template,
            max_length=config.max_length,
            overlong=config.data.overlong or "drop",  # type: ignore[arg-type]
            max_drop_fraction=config.data.max_drop_fraction,
            cache_folder=cache_folder("tokens") if config.data.cache else None,
            progress=progress if cluster.is_main else None,
        )

    if not cluster.is_main:
        cluster.barrier()
    train = tokens([entry.path for entry in config.data.all_sets], "data.path")
    eval_path = config.data.eval_path
    evaluated = tokens(eval_path, "data.eval_path") if eval_path else None
    if cluster.is_main:
        cluster.barrier()
    ledgers = {"train": train.ledger} | ({"eval": evaluated.ledger} if evaluated else {})
    if config.data.eval_rows == 0:
        return Data(train, evaluated, ledgers, train.notes)
    if config.data.eval_rows >= len(train):
        raise DataError(
            f"data.eval_rows is {config.data.eval_rows}, but only {len(train)} rows can be used; "
            "lower it, so that rows are left to learn from"
        )
    kept, held_out = hold_out(train, config.data.eval_rows, config.seed)
    return Data(kept, held_out, ledgers, train.notes)


def build_trainer(
    config: Config, data: Data, cluster: Cluster, say: Say = print
) -> tuple[Trainer, list[str]]:
    """Model, adapters, method, optimizer and schedule, ready to run; and notes on how they came to be.

    `say` is told later, on the main rank only, when something is decided anew.
    """
    # for dropout; all that ranks must share is drawn by generators
    torch.manual_seed((config.seed + cluster.rank) % 2**63)
    if config.train.threads:
        _set_threads(config.train.threads)
    policy, notes = _build_policy(config, cluster)
    trained = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
    for _, parameter in trained:
        parameter.grad_dtype = torch.float32  # micro-batches add up in full precision  # pyright: ignore[reportAttributeAccessIssue]
    micro_tokens = _micro_tokens(config, data, next(policy.parameters()).device)
    source = StepSource(
        data.train,
        tokens_per_step=config.train.tokens_per_step,
        micro_tokens=micro_tokens,
        seed=config.seed,
        rank=cluster.rank,
        world=cluster.world,
        sharing=config.data.share_prefixes and policy.can_share,
    )
    total_steps = source.total_steps(config.train.epochs, config.train.steps)
    trainer = Trainer(
        policy,
        build_method(config),
        source,
        _plugin(luthier.optim, config.optim.name, config.optim.options).build(trained, config.learning_rate),
        _schedule(config, total_steps),
        cluster,
        max_grad_norm=config.train.max_grad_norm,
    )
    _plan(config, trainer, say if cluster.is_main else lambda line: None)
    return trainer, notes


def _build_policy(config: Config, cluster: Cluster) -> tuple[Policy, list[str]]:
    """The model with its adapters in the fastest form that gives its own numbers, and how that came out."""
    device = pick_device(config.model.device)
    if device.type == "cuda":
        device = torch.device("cuda", cluster.local_rank)
    else:
        native.build_ahead()
        if config.memory.keep_pages:
            keep_pages()
    dtype = pick_dtype(config.model.dtype, device)
    if dtype is torch.float16:
        raise ConfigError(
            "model.dtype is float16, whose small range loses small gradients in training. "
            "Set model.dtype: auto, bfloat16 or float32."
        )
    folder = resolve_model(config.model.name, revision=config.model.revision, offline=config.offline)
    choice = choose_policy(load_model(folder, dtype, device), config.model.packing, config.max_length)
    policy = choice.policy
    notes = [f"{reason}; taking {policy.layout}" for reason in choice.reasons]
    notes.append(_adapt(config, policy.model))
    if config.model.fused:
        _, line = fuse_checked(policy)
        notes.append(line)
    if config.model.compile:
        notes.append(compile_layers(policy.model))
    if device.type == "cpu" and (why := native.reason()):
        notes.append(f"plain torch instead of C++ kernels, which is slower: {why}")
    num_all = sum(p.numel() for p in policy.parameters())
    num_trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    notes.append(
        f"training {num_trained:,} of {num_all:,} weights in {str(dtype).split('.')[1]} on {device.type}"
    )
    return policy, notes


def _micro_tokens(config: Config, data: Data, device: torch.device) -> int:
    """Tokens in one forward and backward pass: an even share of a step's, with room for the longest row.

    On a CPU more than a few thousand make no product faster, only activations larger.
    """
    most = config.train.micro_tokens
    if config.train.tokens_per_micro_batch is not None or device.type != "cpu":
        return most
    least = max(min(most, CPU_MICRO_TOKENS), int(np.max(data.train.lengths)))
    return config.train.tokens_per_step // max(1, config.train.tokens_per_step // least)


def _plan(config: Config, trainer: Trainer, say: Say) -> None:
    """Lets the trainer plan which activations it keeps."""
    trainer.learner.activations = plan_activations(
        trainer.policy,
        trainer.optimizer,
        mode=config.memory.activations,
        limit=config.memory.limit,
        processes=int(os.environ.get("LOCAL_WORLD_SIZE", trainer.cluster.world)),
        micro_tokens=trainer.source.micro_tokens,
        tell=say,
    )


def _set_threads(wanted: int) -> None:
    cores = os.cpu_count() or 1
    if wanted > cores:
        raise ConfigError(
            f"train.threads is {wanted}, but this machine has {cores} cores; more threads only get in each "
            "other's way. Lower it, or leave it out."
        )
    torch.set_num_threads(wanted)


def build_method(config: Config) -> Method:
    """The method with its settings."""
    return _plugin(luthier.methods, config.method.name, config.method.options)


def _plugin(package: ModuleType, name: str, options: dict[str, Any]) -> Any:
    """A method or an optimizer by the name of its file."""
    return load_plugin(package, name)(**options)


def _adapt(config: Config, model: torch.nn.Module) -> str:
    """Puts adapters into the model, or opens all of its weights; says which."""
    lora = config.lora
    if lora is None:
        model.requires_grad_(True)
        return "full fine-tuning"
    report: LoraReport = apply_lora(
        model,  # pyright: ignore[reportArgumentType]
        rank=lora.rank,
        alpha=lora.alpha,
        dropout=lora.dropout,
        rslora=lora.rslora,
        target=lora.target,
        modules_to_save=lora.modules_to_save,
        generator=torch.Generator().manual_seed(config.seed % 2**63),
    )
    stacked = sum(p.dim() > 2 for p in model.parameters())
    besides = f"; {stacked} stacked tensors, such as experts, stay as they are" if stacked else ""
    return f"LoRA rank {lora.rank} on {len(report.targets)} layers{besides}"


def _schedule(config: Config, total_steps: int) -> Schedule:
    section = config.schedule
    ratio = 0.03 if section.warmup_ratio is None else section.warmup_ratio
    warmup = section.warmup_steps if section.warmup_steps is not None else round(ratio * total_steps)
    if warmup >= total_steps > 1 and section.warmup_steps is not None:
        raise ConfigError(
            f"schedule.warmup_steps is {warmup}, but the run has only {total_steps} steps, so the learning rate "
            "would never reach its peak. Lower it, or train longer."
        )
    return Schedule(section.name, total_steps, warmup, section.min_ratio, section.decay_ratio)
