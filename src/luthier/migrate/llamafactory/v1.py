"""The second version of LLaMA-Factory (`USE_V1=1`): other keys, plugins in sections."""

import json
from pathlib import Path
from typing import Any

from luthier.config.source import read_file
from luthier.errors import ConfigError
from luthier.migrate.adapters import module_names
from luthier.migrate.batches import Factor, put_tokens_per_step
from luthier.migrate.draft import Draft, Rule
from luthier.migrate.findings import Kind
from luthier.migrate.names import put_model, put_output
from luthier.migrate.optimizers import put_optimizer
from luthier.migrate.places import data_path
from luthier.migrate.quantised import put_quant
from luthier.migrate.readers import Misread, is_off, number, section, switch, text, whole
from luthier.migrate.rules import absent, blocks, each, grouped, needless, option_of, to
from luthier.migrate.schedules import Warmup, put_schedule
from luthier.migrate.trainer import Length, put_clipping, put_length, put_precision, put_recomputing
from luthier.migrate.trainer_keys import SHARDS

_PREFERENCES = "belongs to the command dpo; preferences are not learned from yet"
_FORMATS = {"alpaca": "alpaca", "sharegpt": "sharegpt"}

KEYS: dict[str, Rule] = {
    "model": grouped(),
    "template": needless("the model's own chat template is used"),
    "trust_remote_code": absent(
        "code from the hub is never run; models that need their own code do not load"
    ),
    "flash_attn": needless("attention is exact and packed, by Luthier's own kernels"),
    "model_class": blocks("is for models that do not write text; Luthier trains those that do", "llm"),
    "init_config": needless("weights are read straight to the device"),
    "peft_config": grouped(),
    "kernel_config": needless("Luthier has its own kernels (model.fused)"),
    "quant_config": grouped(),
    "train_dataset": grouped(),
    "dataset": grouped(),
    "eval_dataset": grouped(),
    "output_dir": grouped(),
    "micro_batch_size": grouped(),
    "global_batch_size": grouped(),
    "cutoff_len": grouped(),
    "learning_rate": grouped(),
    "num_train_epochs": grouped(),
    "max_steps": grouped(),
    "max_grad_norm": grouped(),
    "bf16": grouped(),
    "batching_strategy": grouped(),
    "batching_workers": needless("rows are prepared once and read from a memory map"),
    "enable_activation_checkpointing": grouped(),
    "dist_config": absent(SHARDS),
    "dp_size": absent(f"give --processes to count them in; {SHARDS}", 1),
    "cp_size": absent(f"rows are not split over devices; {SHARDS}", 1),
    "cp_mode": option_of("cp_size", "rows are not split over devices", "ulysses"),
    "mp_replicate_size": absent(SHARDS, 1),
    "mp_shard_size": absent(SHARDS, 1),
    "dist_timeout": needless("processes wait by Luthier's own limits"),
    "optim_config": grouped(),
    "lr_scheduler_config": grouped(),
    "seed": to("seed", whole),
    "full_determinism": needless("seed fixes everything that is drawn"),
    "resume_from_checkpoint": absent("to go on with a run: luthier train --resume RUN"),
    "save_steps": to("checkpoint.every", whole),
    "save_epochs": absent("checkpoints are counted in steps (checkpoint.every)"),
    "save_ckpt_as_hf": needless("the model is always saved in the hub's layout at the end"),
    "save_total_limit": to("checkpoint.keep", whole),
    "logging_steps": needless("every step is written to the run's folder"),
    "report_to": absent("nothing is sent to a tracker; the run's folder has its metrics and report"),
    **each(
        blocks(_PREFERENCES),
        "pref_loss pref_beta pref_ftx simpo_gamma dpo_label_smoothing ld_alpha ref_model",
    ),
    "sample_backend": needless("answers are made by Luthier's own decoder"),
    "max_new_tokens": to("eval.answer_tokens", whole),
}
"""One entry a key."""


def is_v1(values: dict[str, Any]) -> bool:
    """Whether a file is one of the second version."""
    return (
        "model" in values
        and "model_name_or_path" not in values
        and bool(set(values) & (set(KEYS) - {"model"}))
    )


def convert(draft: Draft) -> None:
    """Fills the draft from the keys of the second version. Its command is not in the file: sft is taken."""
    draft.run_table(KEYS)
    name = draft.get("model", text)
    if name is None:
        draft.block("model", "is absent, so there is no model to train")
    else:
        put_model(draft, "model", name)
    draft.put("method.name", "sft", "the command (sft, dpo, rm) is not in the file")
    _put_adapter(draft)
    _put_quant(draft)
    _put_data(draft)
    _put_optimizer(draft)
    put_length(draft, Length("num_train_epochs", default_epochs=3.0))
    _put_batch(draft)
    put_clipping(draft)
    put_precision(draft, (), ("bf16",))
    put_recomputing(draft, "enable_activation_checkpointing")
    if "output_dir" in draft.given:
        put_output(draft, "output_dir", draft.get("output_dir", text, "."))


def _put_adapter(draft: Draft) -> None:
    options = draft.get("peft_config", section, {})
    if not options:
        return
    kind = options.pop("name", "lora")
    if "export_dir" in options:
        draft.block("peft_config", "an export, no training run; see luthier export RUN --to merged")
        return
    if kind != "lora":
        draft.block("peft_config", f"{kind} is not there; Luthier tunes all weights, or LoRA adapters")
        return
    if not is_off(options.pop("adapter_name_or_path", None)):
        draft.block("peft_config", "goes on from an adapter; merge it first and name the merged model")
    draft.find("peft_config", Kind.MAPPED, "", "lora")
    draft.put("lora.rank", 8, f"the default of {draft.tool}")
    targets = {"r": "rank", "lora_alpha": "alpha", "lora_dropout": "dropout", "use_rslora": "rslora"}
    readers = {"r": whole, "lora_alpha": number, "lora_dropout": number, "use_rslora": switch}
    for key, value in options.items():
        place = f"peft_config.{key}"
        try:
            if key in targets:
                draft.map(place, f"lora.{targets[key]}", readers[key](value))
            elif key == "target_modules":
                draft.map(place, "lora.target", module_names(value))
            elif key in ("lora_modules_to_save", "modules_to_save"):
                draft.map(place, "lora.modules_to_save", module_names(value))
            else:
                draft.unknown(place, [*targets, "target_modules", "modules_to_save"])
        except Misread as error:
            draft.find(place, Kind.UNKNOWN, f"{error}; it is left out")
    draft.notes.pop("lora.rank", None) if "r" in options else None


def _put_quant(draft: Draft) -> None:
    options = draft.get("quant_config", section, {})
    if "quant_config" not in draft.given:
        return
    bits = options.get("quantization_bit")
    if options.get("name") not in ("bnb", "auto", None) or not isinstance(bits, int):
        draft.none("quant_config", f"{options.get('name')} is not taken over; base weights stay whole")
        return
    kind, double = str(options.get("quantization_type", "nf4")), options.get("double_quantization", True)
    put_quant(draft, "quant_config", bits, kind=kind, double=switch(double))


def _put_data(draft: Draft) -> None:
    key = "train_dataset" if "train_dataset" in draft.given else "dataset"
    if draft.put_rows(key):
        pass
    elif key not in draft.given:
        draft.block("train_dataset", "is absent, so there is nothing to train on")
    else:
        sets = _sets(draft, key)
        plain = all(set(entry) == {"path"} for entry in sets)
        if plain and len(sets) == 1:
            draft.map(key, "data.path", sets[0]["path"])
        elif sets:
            draft.map(key, "data.sets", sets)
    if "dataset" in draft.given and key != "dataset":
        draft.needless("dataset", "has no effect beside train_dataset")
    if "eval_dataset" in draft.given:
        paths = [entry["path"] for entry in _sets(draft, "eval_dataset")]
        if paths:
            draft.map("eval_dataset", "data.eval_path", paths)
    longest = draft.get("cutoff_len", whole, 2048)
    if "cutoff_len" in draft.given:
        draft.map("cutoff_len", "data.max_length", longest)
    else:
        draft.put("data.max_length", longest, f"the default of {draft.tool}")
    note = f"{draft.tool} cuts the end of longer rows; here the end of the turn stays"
    draft.put("data.overlong", "truncate_response", note)


def _sets(draft: Draft, key: str) -> list[dict[str, Any]]:
    """The sets that a YAML file lists, or the one that is named."""
    name = draft.get(key, text, "")
    if not name.endswith((".yaml", ".yml")):
        return [{"path": data_path(name)}]
    try:
        listed = read_file(Path(name)).values
    except ConfigError:
        draft.block(
            key, f"the rows are listed in {name}, which is not here; import where it is, or give --data PATH"
        )
        return []
    sets = []
    for entry_name, entry in listed.items():
        if not isinstance(entry, dict) or not entry.get("path"):
            draft.block(key, f"{entry_name} in {name} has no path")
            continue
        hub = str(entry.get("source", "hf_hub")).startswith("hf")
        made: dict[str, Any] = {"path": data_path(str(entry["path"])) if hub else str(entry["path"])}
        if entry.get("converter") in _FORMATS:
            made["format"] = _FORMATS[entry["converter"]]
        if entry.get("size"):
            made["rows"] = whole(entry["size"])
        if entry.get("weight") not in (None, 1, 1.0):
            made["repeat"] = float(entry["weight"])
        if set(entry) - {"path", "source", "converter", "size", "weight", "split"}:
            draft.none(key, f"{entry_name}: {json.dumps(sorted(entry))} are not all read")
        sets.append(made)
    return sets


def _put_optimizer(draft: Draft) -> None:
    options = draft.get("optim_config", section, {})
    lr = draft.get("learning_rate", number, 1e-4)
    put_optimizer(draft, "optim_config", str(options.get("name", "adamw")), "learning_rate", lr)
    if draft.values["optim"].get("name") == "adamw":
        draft.put("optim.weight_decay", 0.01, f"the default of {draft.tool}, which is torch's")
    options = draft.get("lr_scheduler_config", section, {})
    key = "lr_scheduler_config" if options else None
    warmup = Warmup("lr_scheduler_config", options.get("num_warmup_steps"), "lr_scheduler_config", None)
    name = str(options.get("name", "constant"))
    put_schedule(draft, key, name, warmup, default_ratio=0.0)
    if "lr_scheduler_config" in draft.given and not options:
        draft.needless("lr_scheduler_config", "is empty")


def _put_batch(draft: Draft) -> None:
    longest = Factor("cutoff_len", draft.get("cutoff_len", whole, 2048))
    strategy = draft.get("batching_strategy", text, "normal")
    if "batching_strategy" in draft.given:
        draft.needless("batching_strategy", "rows are always packed without seeing each other")
    total = draft.get("global_batch_size", whole)
    if total is not None:
        factors, processes = [Factor("global_batch_size", total)], draft.processes
        draft.processes = 1  # the total already counts them
        put_tokens_per_step(draft, factors, longest, filled="dynamic" in strategy)
        draft.processes = processes
        draft.find("global_batch_size", Kind.NOTED, "rows become tokens", "train.tokens_per_step")
        if "micro_batch_size" in draft.given:
            draft.needless("micro_batch_size", "micro-batches hold a number of tokens")
        return
    size = draft.get("micro_batch_size", whole, 1)
    put_tokens_per_step(draft, [Factor("micro_batch_size", size)], longest, filled="dynamic" in strategy)
    if "micro_batch_size" in draft.given:
        draft.find("micro_batch_size", Kind.NOTED, "rows become tokens", "train.tokens_per_step")
