"""The model of a run, with head, new tokens and adapters, in the fastest form that gives its own numbers."""

import torch
from transformers import PreTrainedModel

from luthier.config.tree import Config
from luthier.errors import ConfigError
from luthier.kernels import native
from luthier.kernels.attention_varlen import why_not
from luthier.models.adapter_table import adapter_table
from luthier.models.base import folder_to_train
from luthier.models.device import pick_device, pick_dtype
from luthier.models.float8 import multiply_float8
from luthier.models.fused.check import fuse_checked
from luthier.models.load import load_model, load_tokenizer
from luthier.models.new_tokens import NewTokens, add_tokens, place_tokens
from luthier.models.peft_adapters.held import noticeable_peft
from luthier.models.policy import Policy
from luthier.models.quantised.chosen import chosen
from luthier.models.quantised.load import num_weights, storage_note
from luthier.models.quantised.unpack import stored_as
from luthier.models.regional import compile_layers
from luthier.models.rounded.apply import chosen_rounding, round_linears
from luthier.models.tripwire import choose_policy
from luthier.models.value_head import Head
from luthier.parallel.cluster import Cluster
from luthier.training.adapt import adapt, begin_adapters
from luthier.training.heads import load_head_model, modules_to_train, policy_maker
from luthier.training.peft import adapt_by_peft, settle_peft
from luthier.training.rows import Data, Say
from luthier.training.tune import build_way


def build_policy(
    config: Config, cluster: Cluster, head: Head | None, data: Data, say: Say
) -> tuple[Policy, NewTokens, list[str]]:
    """The model with its adapters in the fastest form that gives its own numbers, new tokens, how it came out."""
    device = pick_device(config.model.device)
    if device.type == "cuda":
        device = torch.device("cuda", cluster.local_rank)
    else:
        native.build_ahead()
    dtype = pick_dtype(config.model.dtype, device)
    if dtype is torch.float16:
        raise ConfigError(
            "model.dtype is float16, whose small range loses small gradients in training. "
            "Set model.dtype: auto, bfloat16 or float32."
        )
    folder = folder_to_train(config)
    quantisation = chosen(config)
    if head is None:
        model = load_model(folder, dtype, device, quantisation)
    else:
        model = load_head_model(config, head, data.train, folder, dtype, device, quantisation)
    way = build_way(config)
    reshaped = way.reshape(model) if way is not None else ""
    tokens = _place_tokens(config, model)
    rounding = chosen_rounding(config)
    rounded = round_linears(model, rounding)
    products = multiply_float8(model) if config.model.products == "fp8" else ""
    policy, told = _policy_of(config, model, head)
    notes = [reshaped] * bool(reshaped) + [tokens.note()] * bool(config.model.new_tokens)
    notes += [rounding.note(rounded)] if rounding is not None else []
    notes += [products] * bool(products)
    notes += told
    if config.peft is None:
        notes.append(
            adapt(config, policy.model, list(tokens.ids.values()), modules_to_train(model, head), say)
        )
    notes += begin_adapters(config, policy, data.train, folder)
    fusion, line = fuse_checked(policy) if config.model.fused else (None, "model.fused is false")
    notes += [line] * config.model.fused + adapter_table(policy.model, fusion, line)
    if config.model.compile:
        notes.append(compile_layers(policy.model))
    notes += _slower(policy, dtype, device)
    if said := storage_note(policy.model, config.quant.name if config.quant else stored_as(folder)):
        notes.append(said)
    num_all = num_weights(policy)
    num_trained = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    notes.append(
        f"training {num_trained:,} of {num_all:,} weights in {str(dtype).split('.')[1]} on {device.type}"
    )
    return policy, tokens, notes


def _policy_of(config: Config, model: PreTrainedModel, head: Head | None) -> tuple[Policy, list[str]]:
    """The policy of the fastest faithful layout, with an adapter of peft if that is asked for; what to say of it."""
    notes = adapt_by_peft(config, model, head)
    make = policy_maker(head) if head else Policy
    with noticeable_peft(model):
        choice = choose_policy(model, config.model.packing, config.max_length, make)
    settle_peft(choice.policy)
    return choice.policy, notes + [f"{why}; taking {choice.policy.layout}" for why in choice.reasons]


def _slower(policy: Policy, dtype: torch.dtype, device: torch.device) -> list[str]:
    """What runs slower than it could on this machine, and why."""
    if (
        device.type == "cuda"
        and policy.layout == "packed"
        and (why := _no_flash(policy.model, dtype, device))
    ):
        return [
            f"attention runs as products of tiles instead of torch's flash attention, which is faster: {why}"
        ]
    if device.type == "cpu" and (why := native.reason()):
        return [f"plain torch instead of C++ kernels, which is slower: {why}"]
    return []


def _no_flash(model: PreTrainedModel, dtype: torch.dtype, device: torch.device) -> str:
    """Why a GPU does without torch's flash attention; empty where it does not."""
    config = model.config.get_text_config()
    size = getattr(config, "head_dim", None)
    if size is None and (heads := getattr(config, "num_attention_heads", None)):
        size = config.hidden_size // heads
    softcapped = getattr(config, "attn_logit_softcapping", None) is not None
    return why_not(torch.cuda.get_device_capability(device), dtype, size or 8, softcapped)


def _place_tokens(config: Config, model: PreTrainedModel) -> NewTokens:
    """Gives the model rows for new tokens, as many as its tokenizer gets."""
    tokens = NewTokens({}, {}, {}, 0)
    if config.model.new_tokens:
        name, revision = config.model.name, config.model.revision
        tokenizer = load_tokenizer(name, revision=revision, offline=config.offline)
        tokens = add_tokens(tokenizer, config.model.new_tokens)
        place_tokens(model, tokens)
    return tokens
