"""Axolotl's keys as a configuration of Luthier."""

from typing import Any

from luthier.migrate.adapters import Adapter, put_adapter, put_init, put_layers, put_start
from luthier.migrate.axolotl import keys_data, keys_model, keys_train
from luthier.migrate.axolotl.data import put_data
from luthier.migrate.batches import Factor, put_tokens_per_step
from luthier.migrate.draft import Draft
from luthier.migrate.findings import Kind
from luthier.migrate.methods import put_gate, put_method, put_options, put_reference
from luthier.migrate.names import put_model, put_output
from luthier.migrate.optimizers import put_optimizer
from luthier.migrate.partial import put_lisa, put_unfrozen
from luthier.migrate.quantised import found_in, put_quant
from luthier.migrate.readers import (
    Misread,
    is_off,
    names,
    number,
    numbers,
    real,
    section,
    switch,
    text,
    whole,
)
from luthier.migrate.rounded import put_qat
from luthier.migrate.schedules import Warmup, put_decay, put_schedule
from luthier.migrate.tokens import adds_tokens
from luthier.migrate.trainer import (
    Length,
    put_checkpoints,
    put_clipping,
    put_compile,
    put_evaluation,
    put_length,
    put_precision,
    put_recomputing,
)
from luthier.migrate.trainer_keys import SHARDS

KEYS = {**keys_model.KEYS, **keys_data.KEYS, **keys_train.KEYS}
"""What becomes of each of its keys."""

_CLOUD = ("gpu_count", "volumes", "secrets", "dockerfile_commands", "memory_preprocess", "timeout_preprocess")
_PLUGINS = {
    "liger": "fused layers are Luthier's own",
    "cut_cross_entropy": "the loss never holds all logits at once",
    "kernels": "fused layers are Luthier's own",
    "expert_parallel": "experts are not split over devices",
    "swanlab": "nothing is sent to a tracker",
    "lm_eval": "lm-eval is a tool of its own",
    "spectrum": "layers are not chosen by their signal",
    "grokfast": "gradients are not filtered",
    "densemixer": "experts are computed as the model computes them",
    "nvfp4": "NVFP4 is not there",
}
_BLOCKING = {
    "diffusion": "trains a text diffusion model",
    "llm_compressor": "keeps pruned weights at zero (LLM Compressor)",
    "kd": "learns from a teacher's probabilities",
}
_FSDP = (
    *("activation_checkpointing", "offload_params", "sync_module_states", "cpu_ram_efficient_loading"),
    *("cpu_offload_pin_memory", "use_orig_params", "state_dict_type", "final_state_dict_type"),
    *("auto_wrap_policy", "transformer_layer_cls_to_wrap", "reshard_after_forward", "mixed_precision_policy"),
    *("limit_all_gathers", "backward_prefetch", "backward_prefetch_policy", "forward_prefetch", "version"),
    *("sharding_strategy", "min_num_params", "xla", "fsdp_version", "fsdp_strategy"),
)


def is_cloud(values: dict[str, Any]) -> bool:
    """Whether a file describes a machine to rent, which Axolotl takes beside the configuration."""
    return "base_model" not in values and any(key in values for key in _CLOUD)


def convert(draft: Draft) -> None:
    """Fills the draft from Axolotl's keys."""
    draft.run_table(KEYS)
    _put_method(draft)
    name = draft.get("base_model", text)
    if name is None:
        draft.block("base_model", "is absent, so there is no model to train")
    else:
        put_model(draft, "base_model", name)
    _put_weights(draft)
    if "qat" in draft.given:
        put_qat(draft, "qat", draft.get("qat", section, {}))
    put_unfrozen(draft, adapter=draft.has("lora"))
    put_lisa(draft, adapter=draft.has("lora"))
    put_data(draft)
    _put_optimizer(draft)
    _put_schedule(draft)
    put_length(draft, Length("num_epochs"))
    _put_batch(draft)
    put_clipping(draft)
    put_precision(draft, ("fp16", "float16"), ("bf16", "bfloat16"))
    _put_float32(draft)
    put_recomputing(draft, "gradient_checkpointing")
    _put_offloading(draft)
    put_compile(draft, "torch_compile")
    _put_evaluation(draft)
    put_checkpoints(draft)
    if "saves_per_epoch" in draft.given:
        draft.needless("saves_per_epoch", "a run is saved when it is interrupted and at the end")
    _put_machines(draft)
    _put_plugins(draft)
    _put_tokens(draft)
    if "output_dir" in draft.given:
        put_output(draft, "output_dir", draft.get("output_dir", text, "."))


_OPTIONS = {
    "rl_beta": ("beta", real),
    "dpo_beta": ("beta", real),
    "simpo_gamma": ("gamma", real),
    "dpo_label_smoothing": ("label_smoothing", real),
    "dpo_loss_type": ("loss_type", names),
    "dpo_use_weighting": ("wpo", switch),
    "dpo_loss_weights": ("loss_weights", numbers),
    "kto_desirable_weight": ("desirable_weight", real),
    "kto_undesirable_weight": ("undesirable_weight", real),
}


def _put_method(draft: Draft) -> None:
    asked = draft.get("rl", text)
    if asked and not is_off(asked):
        put_method(draft, "rl", asked.lower())
    elif "rl" in draft.given:
        draft.needless("rl", "is off")
    for key, method in (("reward_model", "rm"), ("process_reward_model", "prm"), ("use_eaft", "eaft")):
        if draft.get(key, switch, False):
            put_method(draft, key, method)
        elif key in draft.given:
            draft.needless(key, "is switched off")
    if not draft.has("method.name"):
        draft.put("method.name", "sft")
    put_gate(draft, "use_eaft")
    alpha = {"orpo": "beta", "simpo": "nll_weight"}.get(draft.values["method"]["name"], "")
    put_options(draft, _OPTIONS | {"orpo_alpha": (alpha, real), "cpo_alpha": (alpha, real)})
    put_reference(draft, "precompute_ref_log_probs", "reference.precompute", switch)
    for key in ("model_type", "type_of_model"):
        kind = draft.get(key, text)
        if kind and any(word in kind for word in ("SequenceClassification", "TokenClassification")):
            if draft.values["method"]["name"] in ("reward", "prm"):
                draft.needless(key, "the head follows from the method")
            else:
                draft.block(key, f"{kind} gives scores, not text")
        elif kind and "ImageTextToText" in kind:
            draft.block(key, "trains on images; Luthier trains on text only")
        elif kind:
            draft.needless(key, "the class follows from the model's config.json")


_ADAPTER = Adapter(
    rank="lora_r",
    alpha="lora_alpha",
    dropout="lora_dropout",
    target="lora_target_modules",
    saved="lora_modules_to_save",
    rslora="peft_use_rslora",
    dora="peft_use_dora",
    plus="loraplus_lr_ratio",
    default_rank=8,
    default_alpha=8,
)


def _put_weights(draft: Draft) -> None:
    """LoRA, with or without quantised base weights, or all weights."""
    kind = draft.get("adapter", text, "")
    used = [value for key, value in vars(_ADAPTER).items() if isinstance(value, str)]
    if is_off(kind):
        others = ["lora_target_linear", "lora_target_parameters", "lora_model_dir", *_PEFT, "adapter"]
        for key in [*used, *others]:
            if key in draft.given:
                draft.needless(key, "has no effect without an adapter" if key != "adapter" else "is off")
        _put_quant(draft, kind)
        return
    if kind not in ("lora", "qlora"):
        draft.block("adapter", f"{kind} is not there; Luthier tunes all weights, or LoRA adapters")
        return
    draft.find("adapter", Kind.MAPPED, "", "lora")
    start = draft.get("lora_model_dir", text)
    if start is not None:
        put_start(draft, "lora_model_dir", start, _ADAPTER)
        for key in ["lora_target_linear", "lora_target_parameters", *_PEFT]:
            if key in draft.given:
                draft.needless(key, "is that of the adapter that is gone on with")
        _put_quant(draft, kind)
        return
    put_adapter(draft, _ADAPTER)
    put_init(draft, "peft_init_lora_weights")
    put_layers(draft, "peft_layers_to_transform")
    _put_quant(draft, kind)
    if draft.get("lora_target_linear", switch, False):
        if _ADAPTER.target in draft.given:
            draft.needless(_ADAPTER.target, "lora_target_linear already means all linear layers")
        draft.map("lora_target_linear", "lora.target", "all")
    elif "lora_target_linear" in draft.given:
        draft.needless("lora_target_linear", "is switched off")
    if "lora_target_parameters" in draft.given:
        named = ", ".join(draft.get("lora_target_parameters", names, []))
        draft.none("lora_target_parameters", f"experts kept as one parameter get no adapters: {named}")


_PEFT = ("peft_init_lora_weights", "peft_layers_to_transform")


def _put_quant(draft: Draft, adapter: str) -> None:
    """Base weights in 4 or 8 bits. QLoRA means 4, unless the file says otherwise."""
    options = draft.get("bnb_config_kwargs", section, {})
    four, eight = (draft.get(f"load_in_{bits}bit", switch) for bits in (4, 8))
    key = "load_in_4bit" if four or not eight else "load_in_8bit"
    for other, on in (("load_in_4bit", four), ("load_in_8bit", eight)):
        if other in draft.given and not on:
            draft.needless(other, "is switched off")
        elif other in draft.given and other != key:
            draft.needless(other, f"has no effect beside {key}")
    if four or eight or (adapter == "qlora" and four is None):
        kind = str(options.get("bnb_4bit_quant_type", "nf4"))
        double = switch(options.get("bnb_4bit_use_double_quant", True))
        put_quant(
            draft,
            key if key in draft.given else "adapter",
            8 if eight and not four else 4,
            kind=kind,
            double=double,
        )
    found_in(draft, "bnb_config_kwargs")


def _put_optimizer(draft: Draft) -> None:
    lr = draft.get("learning_rate", number)
    name = draft.get("optimizer", text)
    if name is None:
        draft.put("optim.name", "adamw")
        if lr is not None:
            draft.map("learning_rate", "optim.lr", float(lr))
        return
    put_optimizer(draft, "optimizer", name, "learning_rate", lr)


def _put_schedule(draft: Draft) -> None:
    given = "lr_scheduler" in draft.given
    name = draft.get("lr_scheduler", text, "cosine")
    steps, ratio = draft.get("warmup_steps", number), draft.get("warmup_ratio", number)
    warmup = Warmup("warmup_steps", steps, "warmup_ratio", ratio)
    put_schedule(draft, "lr_scheduler" if given else None, name, warmup, default_ratio=0.03)
    share = draft.get("cosine_min_lr_ratio", number)
    if share is not None:
        draft.map("cosine_min_lr_ratio", "schedule.min_ratio", float(share))
    if "lr_scheduler_kwargs" in draft.given:
        options = draft.get("lr_scheduler_kwargs", section, {})
        if put_decay(draft, options):
            return
        if options:
            draft.none("lr_scheduler_kwargs", f"{', '.join(options)} are not taken over")
        else:
            draft.needless("lr_scheduler_kwargs", "is empty")


def _put_batch(draft: Draft) -> None:
    """Tokens of a step from two of micro_batch_size, gradient_accumulation_steps and batch_size."""
    size = draft.get("micro_batch_size", whole, 1)
    steps = draft.get("gradient_accumulation_steps", whole)
    total = draft.get("batch_size", whole)
    if "batch_size" in draft.given and steps is not None:
        draft.needless("batch_size", "follows from micro_batch_size and gradient_accumulation_steps")
    elif total is not None:
        steps = max(1, total // max(1, size))
        draft.find("batch_size", Kind.NOTED, f"{steps:,} micro-batches a step", "train.tokens_per_step")
    longest = Factor("sequence_len", draft.get("sequence_len", whole, 512))
    packs = draft.get("sample_packing", switch, False) or "pretraining_dataset" in draft.given
    factors = [Factor("micro_batch_size", size), Factor("gradient_accumulation_steps", steps or 1)]
    if draft.get("use_ray", switch, False) and "ray_num_workers" in draft.given:
        factors.append(Factor("ray_num_workers", draft.get("ray_num_workers", whole, 1)))
    put_tokens_per_step(draft, factors, longest, filled=bool(packs))
    note = "" if packs else "rows become tokens; see the comment in the file"
    for factor in factors:
        if factor.name in draft.given:
            draft.find(factor.name, Kind.NOTED if note else Kind.MAPPED, note, "train.tokens_per_step")
    if "ray_num_workers" in draft.given and len(factors) == 2:
        draft.needless("ray_num_workers", "has no effect without use_ray")


def _put_float32(draft: Draft) -> None:
    if draft.get("float32", switch, False):
        draft.map("float32", "model.dtype", "float32")
    elif "float32" in draft.given:
        draft.needless("float32", "is switched off")


def _put_offloading(draft: Draft) -> None:
    value = draft.given.get("activation_offloading")
    if value == "disk":
        draft.none("activation_offloading", "activations go to RAM at most (memory.activations: offload)")
    elif value is not None and not is_off(value):
        draft.map("activation_offloading", "memory.activations", "offload", "inputs of layers go to RAM")
    elif value is not None:
        draft.needless("activation_offloading", "is switched off")


def _put_evaluation(draft: Draft) -> None:
    held_out = any(draft.has(f"data.{key}") for key in ("eval_path", "eval_rows", "eval_fraction"))
    put_evaluation(draft, holds_out=held_out)
    times = draft.get("evals_per_epoch", number, 0)
    if "evals_per_epoch" in draft.given:
        if not held_out or times == 0:
            why = "is off" if times == 0 else "has no effect: no rows are held out"
            draft.needless("evals_per_epoch", why)
        else:
            draft.none(
                "evals_per_epoch", "evaluations are counted in steps (eval.every); it is evaluated at the end"
            )
    patience = draft.get("early_stopping_patience", whole)
    if patience is None:
        return
    if draft.has("eval.every"):
        draft.map("early_stopping_patience", "eval.patience", patience)
    else:
        draft.none("early_stopping_patience", "counts evaluations, but eval.every is not known; set both")


def _put_machines(draft: Draft) -> None:
    for key in ("dp_shard_size", "dp_replicate_size", "tensor_parallel_size", "context_parallel_size"):
        _put_split_size(draft, key)
    for key in ("sequence_parallel_degree", "expert_parallel_size"):
        _put_split_size(draft, key)
    if "device" in draft.given:
        draft.needless("device", "model.device: auto takes a GPU when there is one")
    limit = draft.get("gpu_memory_limit", _gibibytes)
    if limit is not None:
        draft.map("gpu_memory_limit", "memory.limit", limit)
    if "fsdp_config" in draft.given:
        draft.none("fsdp_config", f"FSDP is not used: {SHARDS}")
        for key in draft.get("fsdp_config", section, {}):
            if key.removeprefix("fsdp_") not in _FSDP and key not in _FSDP:
                draft.unknown(f"fsdp_config.{key}", _FSDP)


def _put_split_size(draft: Draft, key: str) -> None:
    if key not in draft.given:
        return
    if draft.get(key, whole, 1) <= 1:
        draft.needless(key, "is off")
    elif key.startswith("dp_"):
        draft.none(key, f"give --processes to count them in; {SHARDS}")
    else:
        draft.none(key, f"rows and layers are not split over devices; {SHARDS}")


def _gibibytes(value: Any) -> float:
    """A number of gigabytes, also with its unit."""
    word = str(value).strip().lower().removesuffix("ib").removesuffix("b").removesuffix("g")
    try:
        return float(word)
    except ValueError:
        raise Misread(f"is {value}, but it must be a number of GiB") from None


def _put_plugins(draft: Draft) -> None:
    plugins = draft.get("plugins", names, [])
    for plugin in plugins:
        part = plugin.removeprefix("axolotl.integrations.").partition(".")[0]
        if part in _BLOCKING:
            draft.block("plugins", f"{plugin}: {_BLOCKING[part]}, which Luthier does not have")
        elif part in _PLUGINS:
            draft.needless("plugins", f"{part}: {_PLUGINS[part]}")
        else:
            draft.none("plugins", f"{plugin} is not run")
    if "plugins" in draft.given and not plugins:
        draft.needless("plugins", "is empty")


_SPECIAL = ("bos_token", "eos_token", "pad_token", "unk_token", "additional_special_tokens")


def _put_tokens(draft: Draft) -> None:
    if "special_tokens" not in draft.given:
        return
    tokens = draft.get("special_tokens", section, {})
    if not tokens:
        draft.needless("special_tokens", "is empty")
    for name, token in tokens.items():
        place = f"special_tokens.{name}"
        if name not in _SPECIAL:
            draft.unknown(place, _SPECIAL)
        elif name == "pad_token":
            draft.needless(place, "nothing is padded")
        elif name in ("bos_token", "eos_token", "unk_token"):
            draft.none(place, f"the tokenizer's own token is kept, even if it is not {token}")
        else:
            adds_tokens()(draft, place, token)
