"""From a config to the objects of a run: the only place where settings become things."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerFast

import luthier.methods
from luthier.allocator import give_back, keep_pages
from luthier.config.tree import Config
from luthier.cores import usable_cores
from luthier.data.chat import ChatTemplate
from luthier.data.loader import StepSource
from luthier.data.registries import expand_registries
from luthier.data.sets import set_names
from luthier.data.stream import StreamSource
from luthier.errors import ConfigError
from luthier.methods.base import Method
from luthier.models.activations.assemble import plan_activations
from luthier.models.noise import EmbeddingNoise
from luthier.models.policy import Policy
from luthier.models.routers import watch_routers
from luthier.optim.in_backward import step_in_backward
from luthier.optim.stepper import Stepper
from luthier.parallel.cluster import Cluster
from luthier.training.companions import build_companions
from luthier.training.curvature import build_curvature
from luthier.training.heads import check_head
from luthier.training.layout import cost_of, layout_of
from luthier.training.loop import Trainer
from luthier.training.model import build_policy
from luthier.training.own_answers import build_own_answers
from luthier.training.peft import follow_ranks
from luthier.training.reference import check_reference
from luthier.training.restarts import add_restarts
from luthier.training.rows import Data, DataBuilder, Say, recipe_of
from luthier.training.teacher import check_teacher, check_vocabulary
from luthier.training.turns import build_turns
from luthier.training.updates import build_optimizer, build_schedule, plugin
from luthier.training.weights import NewRowsFirst

CPU_MICRO_TOKENS = 2048


def build_data(
    config: Config,
    tokenizer: PreTrainedTokenizerFast,
    template: tuple[ChatTemplate | None, str],
    cluster: Cluster,
    say: Say,
    scratch: Path,
) -> Data:
    """Reads, converts and tokenises the rows; of a stream only the first ones.

    Args:
        template: what `build_template` gave.
        scratch: a folder of the run for tokens that are not kept.
    """
    method = build_method(config)
    check_vocabulary(config, method, tokenizer)
    recipe = recipe_of(config, tokenizer, *template)
    options = replace(recipe.options, labels=method.classes, joined=method.reads == "relevance")
    recipe = replace(recipe, options=options)
    data = DataBuilder(config, recipe, method.reads, cluster, say, scratch).build()
    if data.stream is not None and type(method).arrange is not Method.arrange:
        data.close()
        cause = "set data.streaming: false"
        if not data.stream.same_every_epoch:
            cause = (
                "but data.mix or a data set's rows or repeat choose other rows in each epoch. Leave rows and repeat "
                "out and set data.mix: concat"
            )
        raise ConfigError(
            f"method {config.method.name} looks at each row beside another one, so it needs all rows at once; "
            f"{cause}"
        )
    return data


def build_trainer(
    config: Config, data: Data, cluster: Cluster, say: Say = print
) -> tuple[Trainer, Data, list[str]]:
    """Model, adapters, method, optimizer and schedule, ready to run; the rows as the method wants them; and notes on
    how all of it came to be.

    `say` is told later, on the main rank only, when something is decided anew.
    """
    # for dropout; all that ranks must share is drawn by generators
    torch.manual_seed((config.seed + cluster.rank) % 2**63)
    _set_threads(config.train.threads)
    method = build_method(config)
    tell = say if cluster.is_main else _say_nothing
    policy, tokens, notes = build_policy(config, cluster, method.head(data.labels), data, tell)
    trained = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
    for _, parameter in trained:
        parameter.grad_dtype = torch.float32  # micro-batches add up in full precision  # pyright: ignore[reportAttributeAccessIssue]
    notes += _add_noise(config, policy) + _watch_routers(config, policy)
    data = _arranged(config, method, data)
    micro_tokens = _micro_tokens(config, data, next(policy.parameters()).device)
    layout = layout_of(config, data, policy, micro_tokens)
    data, notes = replace(data, train=layout.dataset), notes + [layout.note] * bool(layout.note)
    source = _source(config, data, policy, cluster, micro_tokens, layout.sharing)
    total_steps = source.total_steps(config.train.epochs, config.train.planned_steps)
    often = isinstance(source, StepSource) and total_steps > source.steps_per_epoch
    beside = build_companions(config, policy, method, data, often=often, cluster=cluster, say=tell)
    data = beside.data
    if isinstance(source, StepSource):
        source.dataset = data.train
    optimizer = build_optimizer(config, trained, policy.model)
    notes += [parts] if (parts := optimizer.about_parts()) else []
    trainer = Trainer(
        policy,
        method,
        source,
        optimizer,
        build_schedule(config, total_steps),
        cluster,
        max_grad_norm=config.train.max_grad_norm,
        max_tokens=config.train.max_tokens,
        reference=beside.reference,
    )
    notes += follow_ranks(trainer)
    trainer.learner.scorer.teacher = beside.teacher
    own_answers, told = build_own_answers(config, method, policy, source)
    trainer.learner.before_step = own_answers or trainer.learner.before_step
    if len(sets := expand_registries(config.data.all_sets)[0]) > 1 and config.data.document_mask:
        trainer.learner.set_names = set_names(sets)
    if config.train.optimizer_in_backward:
        notes.append(_step_in_backward(trainer, optimizer))
    if turns := build_turns(config, policy.model, optimizer):
        trainer.learner.before_step = turns.before(trainer.learner.before_step)
    if steps := config.train.new_token_steps:
        trainer.learner.before_update = NewRowsFirst(trainer, list(tokens.ids.values()), steps)
    told += add_restarts(config, trainer)
    trainer.learner.before_step = build_curvature(config, trainer) or trainer.learner.before_step
    _settle(config, trainer.device)
    _plan(config, trainer, turns.most() if turns else None, tell)
    return trainer, data, notes + beside.notes + told


def _step_in_backward(trainer: Trainer, optimizer: Stepper) -> str:
    """Has weights updated within the backward pass; returns what to say of it."""
    if trainer.cluster.world > 1:
        raise ConfigError(
            f"train.optimizer_in_backward is true, but {trainer.cluster.world} processes add up their gradients after "
            "the backward pass. Train with one process, or leave it out"
        )
    if optimizer.gradients.homes:
        raise ConfigError(
            "train.optimizer_in_backward is true, but this run trains adapters, whose gradients are small and lie in "
            "one piece. Leave it out"
        )
    step_in_backward(optimizer, lambda: trainer.learner.in_last)
    return "each weight is updated within the backward pass, as soon as its gradient is whole"


def _settle(config: Config, device: torch.device) -> None:
    """Hands back what was taken while the model was made, and has free memory stay from now on.

    Not before: what is loaded and freed in turn would leave holes that nothing fits into, and they would stay, too.
    """
    if device.type == "cpu":
        give_back()
        if config.memory.keep_pages:
            keep_pages()


def _arranged(config: Config, method: Method, data: Data) -> Data:
    """The rows as the method wants them."""
    train = data.train if data.stream is not None else method.arrange(data.train, config.train.micro_tokens)
    held_out = data.held_out
    return replace(data, train=train, held_out=method.arrange(held_out) if held_out is not None else None)


def _say_nothing(line: str) -> None:
    """What the other ranks say."""


def _add_noise(config: Config, policy: Policy) -> list[str]:
    """Makes training noisy if that is asked for; returns what to say of it."""
    alpha = config.train.neftune_noise_alpha
    if not alpha:
        return []
    shared = config.data.share_prefixes and policy.can_share
    policy.noise = EmbeddingNoise(alpha, config.seed)
    besides = "; what rows begin with alike is computed for each of them" if shared else ""
    return [f"noise on embedded tokens in training (NEFTune, alpha {alpha:g}){besides}"]


def _watch_routers(config: Config, policy: Policy) -> list[str]:
    """Adds the losses of a mixture's routers; returns what to say of them."""
    section = config.model
    found = policy.routers = watch_routers(policy.model, section.router_aux_weight, section.router_z_weight)
    if found is None:
        return []
    if section.compile:
        raise ConfigError(
            "model.compile hides the routers of a mixture of experts, whose losses are asked for (weights "
            f"{found.balance:g} and {found.z:g}). Set model.compile: false, or model.router_aux_weight: 0."
        )
    return [
        f"routers: {found.number} of {found.num_experts} experts, balance {found.balance:g}, z {found.z:g}"
    ]


def _source(
    config: Config, data: Data, policy: Policy, cluster: Cluster, micro_tokens: int, sharing: bool
) -> StepSource | StreamSource:
    """The micro-batches of each step."""
    options: dict[str, Any] = {
        "tokens_per_step": config.train.tokens_per_step,
        "micro_tokens": micro_tokens,
        "seed": config.seed,
        "rank": cluster.rank,
        "world": cluster.world,
        "sharing": sharing,
        "cost": cost_of(policy, adapters=config.has_adapter),
    }
    if data.stream is None:
        return StepSource(data.train, **options)
    return StreamSource(
        data.stream,
        epochs=None if config.train.planned_steps else config.train.epochs,
        max_drop_fraction=config.data.max_drop_fraction,
        **options,
    )


def _micro_tokens(config: Config, data: Data, device: torch.device) -> int:
    """Tokens in one forward and backward pass: an even share of a step's, with room for the longest row.

    On a CPU more than a few thousand make no product faster, only activations larger.
    """
    most = config.train.micro_tokens
    if config.train.tokens_per_micro_batch is not None or device.type != "cpu":
        return most
    if config.train.optimizer_in_backward:
        return most  # all of a step's
    longest = config.max_length if data.stream is not None else int(np.max(data.train.lengths))
    least = max(min(most, CPU_MICRO_TOKENS), longest)
    return config.train.tokens_per_step // max(1, config.train.tokens_per_step // least)


def _plan(config: Config, trainer: Trainer, most: list[nn.Parameter] | None, say: Say) -> None:
    """Lets the trainer plan which activations it keeps. `most`: the most weights that are tuned at a time, if fewer
    than all."""
    trainer.learner.activations = plan_activations(
        trainer.policy,
        trainer.optimizer,
        mode=config.memory.activations,
        limit=config.memory.limit,
        processes=int(os.environ.get("LOCAL_WORLD_SIZE", trainer.cluster.world)),
        micro_tokens=trainer.source.micro_tokens,
        at_a_time=most,
        tell=say,
    )


def _set_threads(wanted: int | None) -> None:
    """As many threads as wanted; without a wish no more than this process may use cores, of which torch looks at
    those of the machine only."""
    cores = usable_cores()
    if wanted is None:
        if torch.get_num_threads() > cores and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(cores)
        return
    if wanted > cores:
        machine = os.cpu_count() or 1
        of_machine = f" of this machine's {machine}" if machine > cores else ""
        raise ConfigError(
            f"train.threads is {wanted}, but this process may use {cores} cores{of_machine}; more threads only get "
            "in each other's way. Lower it, or leave it out."
        )
    torch.set_num_threads(wanted)


def build_method(config: Config) -> Method:
    """The method with its settings.

    Raises:
        ConfigError: settings that cannot work together.
    """
    method: Method = plugin(luthier.methods, config.method.name, config.method.options)
    check_teacher(config, method)
    check_head(config, method.head())
    check_reference(config, method)
    return method
