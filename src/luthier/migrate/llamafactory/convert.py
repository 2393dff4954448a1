"""LLaMA-Factory's arguments as a configuration of Luthier."""

import re

from luthier.migrate.adapters import Adapter, put_adapter, put_start
from luthier.migrate.batches import Factor, put_tokens_per_step
from luthier.migrate.draft import Draft
from luthier.migrate.findings import Kind
from luthier.migrate.llamafactory import keys_data, keys_model, keys_tuning
from luthier.migrate.llamafactory.data import put_data
from luthier.migrate.methods import put_gate, put_method, put_options, put_reference, put_smoothing
from luthier.migrate.names import put_model, put_output
from luthier.migrate.optimizers import put_optimizer
from luthier.migrate.partial import put_badam, put_freeze
from luthier.migrate.quantised import found_in, put_quant
from luthier.migrate.readers import is_off, names, number, real, section, switch, text, whole
from luthier.migrate.schedules import Warmup, put_decay, put_schedule
from luthier.migrate.trainer import (
    Length,
    put_checkpoints,
    put_clipping,
    put_compile,
    put_evaluation,
    put_length,
    put_place,
    put_precision,
    put_recomputing,
)
from luthier.migrate.trainer_keys import KEYS as TRAINER_KEYS

KEYS = {**keys_model.KEYS, **keys_tuning.KEYS, **keys_data.KEYS, **TRAINER_KEYS}
"""What becomes of each of its arguments."""

_IMAGE_MODEL = re.compile(
    r"(?<![a-z])(vl|vision|llava|pixtral|omni|internvl|paligemma|mllama)(?![a-z])", re.I
)


def convert(draft: Draft) -> None:
    """Fills the draft from LLaMA-Factory's arguments. The file may turn out to describe no training."""
    draft.run_table(KEYS)
    if not _trains(draft):
        return
    _put_model(draft)
    stage = draft.get("stage", text, "sft")
    if stage == "pt":
        draft.map("stage", "method.name", "sft", "rows of plain text are learned whole")
    elif stage == "dpo":
        put_method(draft, "stage", _LOSSES.get(draft.get("pref_loss", text, "sigmoid"), stage))
    elif "stage" in draft.given:
        put_method(draft, "stage", stage)
    else:
        draft.put("method.name", "sft")
    for key in ("use_dft_loss", "use_asft_loss", "use_eaft_loss"):
        if draft.get(key, switch, False):
            put_method(draft, key, key.removeprefix("use_").removesuffix("_loss"))
        elif key in draft.given:
            draft.needless(key, "is switched off")
    _put_method_options(draft, stage)
    put_gate(draft, "use_eaft_loss")
    put_smoothing(draft)
    _put_weights(draft)
    put_data(draft, plain_text=stage == "pt")
    _put_optimizer(draft)
    _put_schedule(draft)
    put_length(draft, Length("num_train_epochs", default_epochs=3.0))
    _put_batch(draft, filled=stage == "pt")
    put_clipping(draft)
    _put_precision(draft)
    put_place(draft, "use_cpu", "no_cuda")
    for key in ("gradient_checkpointing", "activation_checkpointing"):
        put_recomputing(draft, key)
    if "disable_gradient_checkpointing" in draft.given:
        draft.needless("disable_gradient_checkpointing", "memory.activations keeps all that fits")
    put_compile(draft, "torch_compile")
    put_evaluation(draft, holds_out=draft.has("data.eval_path") or _has_share(draft))
    put_checkpoints(draft)
    _put_early_stop(draft)
    if "output_dir" in draft.given:
        put_output(draft, "output_dir", draft.get("output_dir", text, "."))


_LOSSES = {"orpo": "orpo", "simpo": "simpo", "ipo": "ipo", "hinge": "hinge"}
"""Values of pref_loss that are methods of their own here, or forms of one."""

_OPTIONS = {
    "pref_beta": ("beta", real),
    "dpo_label_smoothing": ("label_smoothing", real),
    "ld_alpha": ("ld_alpha", real),
    "simpo_gamma": ("gamma", real),
    "kto_chosen_weight": ("desirable_weight", real),
    "kto_rejected_weight": ("undesirable_weight", real),
}


def _put_method_options(draft: Draft, stage: str) -> None:
    put_options(draft, _OPTIONS)
    put_reference(draft, "ref_model", "reference.name", text)
    if "pref_loss" not in draft.given:
        return
    loss = draft.get("pref_loss", text, "sigmoid")
    if stage != "dpo":
        draft.needless("pref_loss", f"has no effect with stage: {stage}")
    elif loss in ("sigmoid", *_LOSSES):
        draft.find("pref_loss", Kind.MAPPED, "", "method")
    else:
        draft.block("pref_loss", f"{loss} is a loss that Luthier does not have")


def _trains(draft: Draft) -> bool:
    """Whether the file describes a training run; else says which command does what it describes."""
    trains = draft.get("do_train", switch)
    if draft.given.get("export_dir") and not trains:
        form = "" if draft.given.get("export_quantization_bit") is None else ", quantised"
        draft.block("export_dir", f"an export{form}, no training run; see luthier export RUN --to merged")
    elif not trains and any(draft.get(key, switch, False) for key in ("do_predict", "do_eval")):
        draft.block("do_predict", "a prediction, no training run; see luthier evaluate RUN")
    elif "dataset" not in draft.given and not draft.rows:
        draft.block("dataset", "is absent, so there is nothing to train on; see luthier chat for talking")
    return not draft.reasons


def _put_model(draft: Draft) -> None:
    name = draft.get("model_name_or_path", text)
    if name is None:
        draft.block("model_name_or_path", "is absent, so there is no model to train")
        return
    put_model(draft, "model_name_or_path", name)
    if "adapter_folder" in draft.given:
        draft.needless("adapter_folder", "adapter_name_or_path says where the adapter is")
    for key in ("freeze_vision_tower", "freeze_multi_modal_projector"):
        if key not in draft.given:
            continue
        if _IMAGE_MODEL.search(name) or not draft.get(key, switch, True):
            draft.block(key, "trains an image model; Luthier trains on text only")
        else:
            draft.needless(key, "the model has no such part")


def _put_weights(draft: Draft) -> None:
    """LoRA or all weights; what else can be chosen there is refused."""
    kind = draft.get("finetuning_type", text, "lora")
    lora = "lora_rank lora_alpha lora_dropout lora_target additional_target use_rslora use_dora "
    lora += "loraplus_lr_ratio pissa_init pissa_iter"
    freeze = "freeze_trainable_layers freeze_trainable_modules freeze_extra_modules use_llama_pro"
    other = {"lora": lora, "freeze": freeze, "oft": "oft_rank oft_block_size oft_target module_dropout"}
    for owner, keys in other.items():
        for key in keys.split():
            if owner != kind and key in draft.given:
                draft.needless(key, f"has no effect without finetuning_type: {owner}")
    put_badam(draft, whole_weights=kind == "full")
    if kind == "freeze":
        put_freeze(draft)
    if kind == "oft":
        draft.block(
            "finetuning_type", "tunes by rotations (OFT); Luthier tunes all weights, or LoRA adapters"
        )
        return
    if kind not in ("lora", "full", "freeze"):
        draft.block("finetuning_type", f"{kind} is not known; it is lora, full, freeze or oft")
        return
    if "finetuning_type" in draft.given and kind != "freeze":
        draft.find("finetuning_type", Kind.MAPPED, "", "lora" if kind == "lora" else None)
    start = draft.get("adapter_name_or_path", names, [])
    fresh = draft.get("create_new_adapter", switch, False)
    if start and (kind != "lora" or fresh or len(start) > 1):
        draft.block(
            "adapter_name_or_path", "is merged before training there; merge it and name the merged model"
        )
    elif start:
        put_start(draft, "adapter_name_or_path", start[0], _ADAPTER)
    if "create_new_adapter" in draft.given:
        draft.needless(
            "create_new_adapter", "is off" if not fresh else "a run starts a new adapter by itself"
        )
    if kind == "lora" and not start:
        put_adapter(draft, _ADAPTER)
        _put_pissa(draft)
    _put_quant(draft)


def _put_quant(draft: Draft) -> None:
    """Base weights in few bits."""
    bits = draft.get("quantization_bit", whole)
    others = ("quantization_method", "quantization_type", "double_quantization")
    if bits is not None:
        put_quant(
            draft,
            "quantization_bit",
            bits,
            kind=draft.get("quantization_type", text, "nf4"),
            double=draft.get("double_quantization", switch, True),
            method=draft.get("quantization_method", text, "bnb").lower(),
        )
    found_in(draft, *others)


def _put_pissa(draft: Draft) -> None:
    """How adapters start. A number of iterations asks for the fast decomposition, -1 for the whole one."""
    if not draft.get("pissa_init", switch, False):
        for key in ("pissa_init", "pissa_iter"):
            if key in draft.given:
                draft.needless(
                    key, "is switched off" if key == "pissa_init" else "has no effect without pissa_init"
                )
        return
    fast = draft.get("pissa_iter", whole, 16) != -1
    draft.map("pissa_init", "lora.init", "pissa_fast" if fast else "pissa")
    if "pissa_iter" in draft.given:
        draft.find("pissa_iter", Kind.MAPPED, "", "lora.init")


_ADAPTER = Adapter(
    rank="lora_rank",
    alpha="lora_alpha",
    dropout="lora_dropout",
    target="lora_target",
    saved="additional_target",
    rslora="use_rslora",
    dora="use_dora",
    plus="loraplus_lr_ratio",
    default_rank=8,
)


_SPECIAL = {"use_adam_mini": "adam_mini", "use_muon": "muon", "use_galore": "galore", "use_apollo": "apollo"}
_PROJECTED = ("rank", "update_interval", "scale", "scale_type")
_SCALES = {"galore": 2.0, "apollo": 32.0}
"""What LLaMA-Factory multiplies updates by, if the file does not say."""


def _put_optimizer(draft: Draft) -> None:
    lr = draft.get("learning_rate", number, 5e-5)
    chosen = [key for key in _SPECIAL if draft.get(key, switch, False)]
    for key in _SPECIAL:
        if key in draft.given and key not in chosen:
            draft.needless(key, "is switched off")
    for name in ("galore", "apollo"):
        if f"use_{name}" not in chosen:
            for option in _PROJECTED:
                if f"{name}_{option}" in draft.given:
                    draft.needless(f"{name}_{option}", f"has no effect without use_{name}")
    if not chosen:
        put_optimizer(draft, "optim", draft.get("optim", text, "adamw_torch"), "learning_rate", lr)
        return
    if "optim" in draft.given:
        draft.needless("optim", f"has no effect beside {chosen[0]}")
    name = _SPECIAL[chosen[0]]
    put_optimizer(draft, chosen[0], name, "learning_rate", lr)
    if name in _SCALES:
        _put_projection(draft, name)


def _put_projection(draft: Draft, name: str) -> None:
    """Sets the options of GaLore and APOLLO; the defaults are those of LLaMA-Factory."""
    for option, ours, default in (("rank", "rank", 16), ("update_interval", "update_every", 200)):
        key = f"{name}_{option}"
        if key in draft.given:
            draft.map(key, f"optim.{ours}", draft.get(key, whole, default))
        else:
            draft.put(f"optim.{ours}", default, f"the default of {draft.tool}")
    scale = draft.get(f"{name}_scale", real, _SCALES[name])
    if f"{name}_scale" in draft.given:
        draft.map(f"{name}_scale", "optim.scale", scale)
    else:
        draft.put("optim.scale", scale, f"the default of {draft.tool}")
    if f"{name}_scale_type" in draft.given:
        draft.map(f"{name}_scale_type", "optim.per", draft.get(f"{name}_scale_type", text, "channel"))


def _put_schedule(draft: Draft) -> None:
    given = "lr_scheduler_type" in draft.given
    name = draft.get("lr_scheduler_type", text, "linear")
    warmup = Warmup(
        "warmup_steps",
        draft.get("warmup_steps", number),
        "warmup_ratio",
        draft.get("warmup_ratio", number),
    )
    put_schedule(draft, "lr_scheduler_type" if given else None, name, warmup, default_ratio=0.0)
    if "lr_scheduler_kwargs" not in draft.given:
        return
    options = draft.get("lr_scheduler_kwargs", section, {})
    lr = draft.get("learning_rate", number, 5e-5)
    if "min_lr_rate" in options or "min_lr" in options:
        share = number(options.get("min_lr_rate") or number(options["min_lr"]) / lr)
        draft.map(
            "lr_scheduler_kwargs",
            "schedule.min_ratio",
            round(float(share), 10),
            "min_lr as a share of the peak",
        )
    elif put_decay(draft, options):
        return
    else:
        draft.none("lr_scheduler_kwargs", f"{', '.join(options)} are not taken over")


def _put_batch(draft: Draft, *, filled: bool) -> None:
    size_key = "per_device_train_batch_size"
    if size_key not in draft.given and "per_gpu_train_batch_size" in draft.given:
        size_key = "per_gpu_train_batch_size"
    size = draft.get(size_key, whole, 8)
    steps = draft.get("gradient_accumulation_steps", whole, 1)
    longest = draft.get("cutoff_len", whole, 2048)
    workers = draft.get("ray_num_workers", whole)
    factors = [Factor(size_key, size), Factor("gradient_accumulation_steps", steps)]
    if workers is not None:
        factors.append(Factor("ray_num_workers", workers))
        draft.find("ray_num_workers", Kind.NOTED, "counts in the tokens of a step", "train.tokens_per_step")
    packs = any(not is_off(draft.given.get(key)) for key in ("packing", "neat_packing"))
    put_tokens_per_step(draft, factors, Factor("cutoff_len", longest), filled=filled or packs)
    note = "" if filled or packs else "rows become tokens; see the comment in the file"
    for factor in factors[:2]:
        if factor.name in draft.given:
            draft.find(factor.name, Kind.NOTED if note else Kind.MAPPED, note, "train.tokens_per_step")
    extra = "per_gpu_train_batch_size"
    if extra in draft.given and extra != size_key:
        draft.needless(extra, f"has no effect beside {size_key}")


def _put_precision(draft: Draft) -> None:
    if "pure_bf16" in draft.given:
        if draft.get("pure_bf16", switch, False):
            note = "Luthier keeps float32 copies of trained weights in the optimizer"
            draft.map("pure_bf16", "model.dtype", "bfloat16", note)
            for key in ("bf16", "fp16"):
                if key in draft.given:
                    draft.needless(key, "has no effect beside pure_bf16")
            return
        draft.needless("pure_bf16", "is switched off")
    put_precision(draft, ("fp16",), ("bf16",))


def _has_share(draft: Draft) -> bool:
    return draft.has("data.eval_rows") or draft.has("data.eval_fraction")


def _put_early_stop(draft: Draft) -> None:
    patience = draft.get("early_stopping_steps", whole)
    if patience is None:
        pass
    elif draft.has("eval.every"):
        draft.map("early_stopping_steps", "eval.patience", patience, "counted in evaluations, there too")
    else:
        draft.none("early_stopping_steps", "counts evaluations, but there are none between the steps")
    if "eval_num_samples" in draft.given:
        draft.map("eval_num_samples", "eval.metric_rows", draft.get("eval_num_samples", whole))
    if "eval_max_new_tokens" in draft.given:
        draft.map("eval_max_new_tokens", "eval.answer_tokens", draft.get("eval_max_new_tokens", whole))
