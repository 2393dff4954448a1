"""torchtune's recipes as configurations of Luthier."""

from typing import Any

from luthier.migrate.batches import Factor, put_tokens_per_step
from luthier.migrate.draft import Draft, Rule
from luthier.migrate.findings import Kind
from luthier.migrate.methods import put_method, put_option
from luthier.migrate.names import put_output
from luthier.migrate.optimizers import put_optimizer
from luthier.migrate.readers import Misread, is_off, number, numbers, real, section, switch, text, whole
from luthier.migrate.rounded import put_quantizer
from luthier.migrate.rules import absent, blocks, each, grouped, needless, option_of, to
from luthier.migrate.schedules import Warmup, put_schedule
from luthier.migrate.torchtune.data import put_data, put_evaluation
from luthier.migrate.torchtune.models import put_tokenizer, put_weights
from luthier.migrate.torchtune.teacher import KEYS as TEACHER
from luthier.migrate.torchtune.teacher import has_teacher, put_teacher
from luthier.migrate.trainer import put_compile
from luthier.migrate.trainer_keys import SHARDS

_REWARDS = "learns by reinforcement, which Luthier does not do yet"
_OTHER = "belongs to evaluation or generation, no training run; see luthier evaluate and luthier chat"
_LOSSES = {"LinearCrossEntropyLoss", "CEWithChunkedOutputLoss", "CrossEntropyLoss"}
_PREFERENCES = {"DPOLoss": "dpo", "RSOLoss": "dpo", "SimPOLoss": "simpo", "IPOLoss": "ipo", "PPOLoss": "ppo"}

KEYS: dict[str, Rule] = {
    **each(
        grouped(),
        "model tokenizer checkpointer dataset datasets dataset_val optimizer lr_scheduler loss output_dir epochs "
        "max_steps_per_epoch batch_size gradient_accumulation_steps clip_grad_norm dtype device compile "
        "enable_activation_checkpointing enable_activation_offloading run_val_every_n_steps quantizer",
    ),
    "seed": to("seed", whole),
    "shuffle": absent("rows are shuffled in every epoch", True),
    "batch_size_val": needless("evaluation packs rows like training"),
    "collate_fn": needless("rows are packed, so nothing is padded"),
    "resume_from_checkpoint": absent("to go on with a run: luthier train --resume RUN"),
    "save_adapter_weights_only": needless(
        "an adapter is saved as such (luthier export RUN --to merged merges it)"
    ),
    "save_every_n_steps": to("checkpoint.every", whole),
    "save_every_n_epochs": needless("a run is saved when it is interrupted and at the end"),
    "save_last_epoch_only": needless("a run is saved when it is interrupted and at the end"),
    "keep_last_n_checkpoints": to("checkpoint.keep", whole),
    "enable_async_checkpointing": needless("checkpoints are written beside the training"),
    "metric_logger": needless("every step is written to the run's folder"),
    "log_every_n_steps": needless("every step is written to the run's folder"),
    "log_peak_memory_stats": needless("memory is always written"),
    "log_level": needless("messages are few and plain"),
    "profiler": needless("no trace is recorded; `luthier bench` measures"),
    "optimizer_in_bwd": absent(
        "gradients are kept until the step: 2 to 4 bytes more for each trained weight"
    ),
    "ac_mode": needless("memory.activations plans it layer by layer"),
    "ac_option": needless("memory.activations plans it layer by layer"),
    "memory_efficient_fsdp_wrap": needless("FSDP is not used"),
    "fsdp_cpu_offload": absent(f"FSDP is not used: {SHARDS}"),
    "fsdp_reshard_after_forward": needless("FSDP is not used"),
    "custom_sharded_layers": absent(f"FSDP is not used: {SHARDS}"),
    "tensor_parallel_dim": absent(SHARDS, 1),
    "tensor_parallel_plan": option_of("tensor_parallel_dim", SHARDS),
    "context_parallel_dim": absent(SHARDS, 1),
    "context_parallel_rotate_method": option_of("context_parallel_dim", SHARDS),
    "data_parallel_shard_dim": absent(f"give --processes to count them in; {SHARDS}", 1, -1),
    "data_parallel_replicate_dim": absent(f"give --processes to count them in; {SHARDS}", 1),
    "cudnn_deterministic_mode": needless("seed fixes everything that is drawn"),
    "use_mlflow": needless("the run's folder has its metrics and report"),
    "model_type": needless("read from the model's config.json"),
    "dataloader": needless("rows are prepared once and read from a memory map"),
    "num_workers": needless("rows are prepared once and read from a memory map"),
    "fake_quant_after_n_steps": option_of("quantizer", "weights are rounded from the first step on"),
    "memory_efficient_fsdp": needless("FSDP is not used"),
    "name": needless("only other keys refer to it"),
    "base_model_path": needless("only other keys refer to it"),
    "model_path": needless("only other keys refer to it"),
    "checkpoint_dir": needless("only other keys refer to it"),
    **each(grouped(), " ".join(TEACHER)),
    "ref_checkpointer": grouped(),
    **each(
        blocks(_REWARDS),
        "reward_functions grpo_samples ppo_epochs ppo_batch_size forward_batch_size num_steps orchestration "
        "inference postprocessing training ref_policy_checkpointer reward_checkpointer "
        "value_checkpointer reward_and_value_model policy_model valmodel kl_coeff whiten_rewards gamma lmbda "
        "min_response_length penalise_no_eos reward_penalty stop_token_ids",
    ),
    **each(
        blocks(_OTHER),
        "tasks limit max_seq_length enable_kv_cache max_new_tokens prompt include_path",
    ),
    **each(
        needless("belongs to generation"),
        "temperature top_k top_p max_generated_tokens debug_logging_enabled debug_num_samples_per_step",
    ),
}
"""One entry a key."""


def is_torchtune(values: dict[str, Any]) -> bool:
    """Whether a file is a recipe of torchtune's: a section of it names a `_component_`."""
    return any(isinstance(value, dict) and "_component_" in value for value in values.values())


def convert(draft: Draft, source: str) -> None:
    """Fills the draft from a recipe whose references are resolved. `source`: the file's text."""
    draft.run_table(KEYS)
    if not {"dataset", "datasets", "optimizer"} & set(draft.given):
        if not draft.reasons:
            draft.block("dataset", "is absent, and so is an optimizer: this is no training run")
        return
    _put_loss(draft)
    if has_teacher(draft):
        put_teacher(draft, source)
    if "optimizer" not in draft.given and not draft.reasons:
        draft.block("optimizer", "is absent, so this is no training run")
    if draft.reasons:
        return
    model = draft.given.get("model")
    if not isinstance(model, dict):
        draft.block("model", "is absent, so there is no model to train")
        return
    try:
        _put_all(draft, model, source)
    except Misread as error:
        draft.block("model", str(error))


def _put_loss(draft: Draft) -> None:
    """Sets `method` from the loss and its options."""
    options = draft.given.get("loss")
    loss = _component(options)
    method = _PREFERENCES.get(loss, "grpo" if "GRPO" in loss else "sft")
    if method != "sft":
        put_method(draft, "loss", method)
    else:
        said = "the loss is the negative log-likelihood, never holding all logits at once"
        if loss in _LOSSES:
            draft.needless("loss", said)
        elif "loss" in draft.given:
            draft.none("loss", f"{loss} is not there: {said}")
        draft.put("method.name", "sft")
    _put_reference(draft)
    for key, value in options.items() if isinstance(options, dict) else ():
        if key not in ("_component_", "num_output_chunks", "ignore_index") and value is not None:
            put_option(draft, f"loss.{key}", "gamma" if key == "simpo_gamma" else str(key), value, real)


def _put_reference(draft: Draft) -> None:
    """The model that DPO compares with, where it is not the one that is trained."""
    if "ref_checkpointer" not in draft.given:
        return
    folders = []
    for key in ("ref_checkpointer", "checkpointer"):
        section = draft.given.get(key)
        folders.append(section.get("checkpoint_dir") if isinstance(section, dict) else None)
    if draft.values.get("method", {}).get("name") != "dpo":
        draft.block("ref_checkpointer", _REWARDS)
    elif folders[0] in (None, folders[1]):
        draft.needless("ref_checkpointer", "the reference is the model before training")
    else:
        draft.map("ref_checkpointer", "reference.name", str(folders[0]))


def _put_all(draft: Draft, model: dict[str, Any], source: str) -> None:
    put_weights(draft, model, source)
    if not is_off(draft.given.get("quantizer")):
        put_quantizer(draft, "quantizer", draft.get("quantizer", section, {}))
    draft.find("checkpointer", Kind.MAPPED, "", "model.name")
    longest = put_tokenizer(draft)
    put_data(draft, longest)
    _put_optimizer(draft)
    _put_schedule(draft)
    _put_length(draft)
    _put_batch(draft, longest)
    clip = draft.get("clip_grad_norm", number)
    if clip is not None:
        draft.map("clip_grad_norm", "train.max_grad_norm", float(clip))
    else:
        draft.put("train.max_grad_norm", None, "torchtune clips no gradients here")
    _put_place(draft)
    for key in ("enable_activation_checkpointing", "enable_activation_offloading"):
        if key in draft.given:
            draft.needless(key, "memory.activations decides what is kept, recomputed or moved to RAM")
    put_compile(draft, "compile")
    put_evaluation(draft)
    if "output_dir" in draft.given:
        put_output(draft, "output_dir", draft.get("output_dir", text, "."))


def _component(value: Any) -> str:
    return str(value.get("_component_", "")).rpartition(".")[2] if isinstance(value, dict) else ""


def _put_optimizer(draft: Draft) -> None:
    options = draft.given.get("optimizer")
    options = (
        {key: value for key, value in options.items() if value is not None}
        if isinstance(options, dict)
        else {}
    )
    put_optimizer(draft, "optimizer", _component(options) or "AdamW", "", None)
    ours = draft.values["optim"]["name"] == "adamw" and not draft.notes.get("optim.name", [""])[0].startswith(
        "instead"
    )
    for key, value in options.items():
        place = f"optimizer.{key}"
        if key == "lr" and ours:
            draft.map(place, "optim.lr", float(number(value)))
        elif key == "weight_decay" and ours:
            draft.map(place, "optim.weight_decay", float(number(value)))
        elif key == "eps" and ours:
            draft.map(place, "optim.eps", float(number(value)))
        elif key == "betas" and ours:
            first, second = numbers(value)
            draft.put("optim.beta1", float(first))
            draft.map(place, "optim.beta2", float(second))
        elif key in ("fused", "foreach", "_component_"):
            draft.needless(place, "the step is fused") if key != "_component_" else None
        else:
            draft.none(place, "is not an option of the optimizer here")
    if ours and "weight_decay" not in options:
        draft.put("optim.weight_decay", 0.01, "the default of torch's AdamW")


def _put_schedule(draft: Draft) -> None:
    options = draft.get("lr_scheduler", section)
    if not isinstance(options, dict):
        draft.put("schedule.name", "constant", "torchtune changes no learning rate here")
        draft.put("schedule.warmup_steps", 0)
        return
    name = _component(options).removeprefix("get_").removesuffix("_schedule_with_warmup")
    warmup = Warmup("lr_scheduler.num_warmup_steps", options.get("num_warmup_steps"))
    put_schedule(draft, "lr_scheduler", name or "cosine", warmup, default_ratio=0.0)
    for key, value in options.items():
        if key == "num_cycles" and value != 0.5:
            draft.none("lr_scheduler.num_cycles", "the learning rate falls once")
        elif key not in ("_component_", "num_warmup_steps", "num_cycles", "last_epoch"):
            draft.none(f"lr_scheduler.{key}", "is not an option of the schedule here")


def _put_length(draft: Draft) -> None:
    epochs = draft.get("epochs", number, 1)
    steps = draft.get("max_steps_per_epoch", whole, 0)
    if steps:
        total = int(steps * epochs)
        draft.map("max_steps_per_epoch", "train.steps", total, f"{steps:,} steps x {epochs:g} epochs")
        if "epochs" in draft.given:
            draft.find("epochs", Kind.NOTED, "counted in steps", "train.steps")
    elif "epochs" in draft.given:
        draft.map("epochs", "train.epochs", float(epochs))


def _put_batch(draft: Draft, longest: int | None) -> None:
    factors = [Factor(key, draft.get(key, whole, 1)) for key in ("batch_size", "gradient_accumulation_steps")]
    data = draft.given.get("dataset")
    packed = isinstance(data, dict) and not is_off(data.get("packed")) and longest is not None
    put_tokens_per_step(draft, factors, Factor("max_seq_len", longest) if longest else None, filled=packed)
    for factor in factors:
        if factor.name in draft.given:
            note = "" if packed else "rows become tokens; see the comment in the file"
            draft.find(factor.name, Kind.NOTED if note else Kind.MAPPED, note, "train.tokens_per_step")


def _put_place(draft: Draft) -> None:
    """Sets `model.dtype` and `model.device`."""
    kinds = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}
    dtype = draft.get("dtype", text)
    if dtype in kinds:
        note = "" if dtype == "fp32" else "weights of this kind, with float32 copies in the optimizer"
        draft.map("dtype", "model.dtype", kinds[dtype], note)
    elif dtype is not None:
        draft.find("dtype", Kind.UNKNOWN, f"{dtype} is none of {', '.join(kinds)}")
    device = draft.get("device", text)
    if device in ("cpu", "cuda"):
        if device == "cpu":
            draft.map("device", "model.device", "cpu")
        else:
            draft.needless("device", "model.device: auto takes a GPU when there is one")
    elif device is not None:
        draft.none("device", f"{device} is not there; model.device is auto")
    if is_off(draft.given.get("quantizer")) and "quantizer" in draft.given:
        draft.needless("quantizer", "is off")
    if draft.get("optimizer_in_bwd", switch, False):
        draft.note("train", "gradients are kept until the step, unlike in the source")
