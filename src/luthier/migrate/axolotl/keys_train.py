"""Keys about training: length, learning rate, precision, evaluation, checkpoints, machines, trackers."""

from typing import Any

from luthier.migrate.draft import Draft, Rule
from luthier.migrate.readers import number, real, whole
from luthier.migrate.rules import absent, blocks, each, grouped, needless, option_of, to, when_on
from luthier.migrate.trainer_keys import SHARDS

_TRACKERS = "nothing is sent to a tracker; the run's folder has its metrics and report"
_SWITCHES = "use_wandb use_mlflow use_comet use_tensorboard use_swanlab use_trackio use_otel_metrics"
_LOADER = "rows are prepared once and read from a memory map"
_DDP = "processes exchange gradients in Luthier's own way"
_HUB = "nothing is sent to the hub; upload the run's folder with the hub's own tool"
_RL = "belongs to methods that learn from preferences or rewards"
_TEACHER = "learns from a teacher, which is not converted; write it with method: distill and teacher: NAME"
_INNER = "set by Axolotl itself while it runs"
_CHAT = "belongs to Axolotl's chat window; see luthier chat"
_RAY = "Ray is not used; start the processes with torchrun"
_SAMPLES = "answers to held-out rows are generated for the report (eval.samples)"
_RESTARTS = "the learning rate does not restart"


def _rate_of_embeddings(*, scaled: bool = False) -> Rule:
    """Sets `optim.groups` to the learning rate of embeddings and head, where these are trained."""

    def rule(draft: Draft, key: str, value: Any) -> None:
        if draft.given.get("adapter") and not draft.given.get("lora_modules_to_save"):
            draft.needless(key, "has no effect: with an adapter the embeddings are not trained")
        elif scaled and "embedding_lr" in draft.given:
            draft.needless(key, "has no effect beside embedding_lr")
        else:
            rate = float(number(value)) * (float(draft.get("learning_rate", number, 1e-5)) if scaled else 1.0)
            draft.map(key, "optim.groups", [{"match": ["embeddings", "head"], "lr": rate}])

    return rule


KEYS: dict[str, Rule] = {
    "strict": needless("unknown keys are always refused"),
    "plugins": grouped(),
    "trainer_cls": blocks("trains by a class of your own; write a method of your own instead (./mine.py)"),
    "seed": to("seed", whole),
    # length and portions
    **each(
        grouped(),
        "num_epochs max_steps micro_batch_size gradient_accumulation_steps batch_size max_grad_norm",
    ),
    "eval_batch_size": needless("evaluation packs rows like training"),
    "auto_find_batch_size": needless("micro-batches hold a number of tokens, and memory is planned before"),
    "sequence_len": grouped(),
    "eval_sequence_len": needless("held-out rows have the same limit"),
    "group_by_length": needless("rows are packed, so nothing is padded"),
    # learning rate, optimizer
    **each(grouped(), "learning_rate optimizer lr_scheduler lr_scheduler_kwargs warmup_steps warmup_ratio"),
    "cosine_min_lr_ratio": grouped(),
    "cosine_constant_lr_ratio": absent("the learning rate falls to the end"),
    "lr_quadratic_warmup": absent("the learning rate rises in a straight line"),
    "lr_div_factor": absent("the warm-up starts at zero"),
    "eta_min": needless("Axolotl ignores it; there it is called cosine_min_lr_ratio"),
    "lr_groups": absent("optim.groups has learning rates of weights by their names; write them there"),
    "embedding_lr": _rate_of_embeddings(),
    "embedding_lr_scale": _rate_of_embeddings(scaled=True),
    "weight_decay": to("optim.weight_decay", real),
    "adam_beta1": to("optim.beta1", real),
    "adam_beta2": to("optim.beta2", real),
    "adam_beta3": absent("only CAME has a third decay"),
    "adam_epsilon": to("optim.eps", real),
    "adam_epsilon2": absent("only CAME has a second epsilon"),
    "adam_eps": needless("Axolotl ignores it; there it is called adam_epsilon"),
    "optim_args": absent("further options of the optimizer are not taken over"),
    "optim_target_modules": absent("the optimizer treats all weights alike"),
    **each(
        absent("belongs to an optimizer that is not there"),
        "dion_lr dion_momentum dion_rank_fraction dion_rank_multiple_of muon_lr muon_momentum",
    ),
    **each(
        absent(_RESTARTS),
        "jagged_restart_steps jagged_restart_warmup_steps jagged_restart_anneal_steps",
    ),
    "neftune_noise_alpha": when_on("train.neftune_noise_alpha", real),
    "noisy_embedding_alpha": when_on("train.neftune_noise_alpha", real),
    **each(grouped(), "use_eaft eaft_alpha eaft_k"),
    "diffusion": blocks("trains a text diffusion model; Luthier trains models that write from left to right"),
    # precision, memory, speed
    **each(grouped(), "bf16 fp16 bfloat16 float16 float32"),
    "tf32": absent("products of float32 follow torch's own setting"),
    "gradient_checkpointing": grouped(),
    "gradient_checkpointing_kwargs": needless("memory.activations plans it layer by layer"),
    "activation_offloading": grouped(),
    "gc_steps": needless("memory is planned (memory.limit)"),
    "torch_compile": grouped(),
    "torch_compile_backend": option_of(
        "torch_compile", "model.compile uses torch's own back end", "inductor"
    ),
    "torch_compile_mode": option_of("torch_compile", "model.compile uses the default mode", "default"),
    # evaluation
    **each(grouped(), "eval_strategy evaluation_strategy eval_steps evals_per_epoch early_stopping_patience"),
    **each(
        absent("scores of other libraries are not computed; eval.metrics has Luthier's"),
        "do_causal_lm_eval eval_causal_lm_metrics do_bench_eval bench_dataset bench_split",
    ),
    **each(
        needless(_SAMPLES),
        "eval_table_size eval_max_new_tokens generate_samples num_generation_samples "
        "generation_max_new_tokens generation_temperature generation_top_p generation_top_k "
        "generation_prompt_ratio generation_do_sample",
    ),
    "metric_for_best_model": absent(
        "the best checkpoint is the one with the lowest loss", "loss", "eval_loss"
    ),
    "greater_is_better": option_of("metric_for_best_model", "the best checkpoint has the lowest loss"),
    "loss_watchdog_threshold": absent("only a loss that is no number stops a run"),
    "loss_watchdog_patience": option_of(
        "loss_watchdog_threshold", "only a loss that is no number stops a run"
    ),
    **each(
        absent("lm-eval is a tool of its own"),
        "lm_eval_tasks lm_eval_batch_size lm_eval_post_train lm_eval_model",
    ),
    # checkpoints
    **each(
        grouped(),
        "save_steps saves_per_epoch save_strategy save_total_limit load_best_model_at_end output_dir",
    ),
    "save_only_model": needless("checkpoints are whole, so that a run goes on exactly where it was"),
    "save_safetensors": needless("weights are always written as safetensors"),
    "save_first_step": needless("a run that is interrupted saves itself"),
    "dynamic_checkpoint": needless("a run that is interrupted saves itself"),
    "resume_from_checkpoint": absent("to go on with a run: luthier train --resume RUN"),
    "auto_resume_from_checkpoints": absent("to go on with a run: luthier train --resume RUN"),
    **each(absent(_HUB), "hub_model_id hub_strategy hub_revision push_to_hub"),
    "hf_use_auth_token": absent(
        "tokens are not kept in files: `hf auth login`, or HF_TOKEN in the environment"
    ),
    # what is written
    **each(
        needless("every step is written to the run's folder"),
        "logging_steps include_tokens_per_second include_tkps",
    ),
    **each(needless("`luthier bench` measures"), "profiler_steps profiler_steps_start debug use_profiler"),
    **each(absent(_TRACKERS), _SWITCHES),
    **each(
        absent(_TRACKERS),
        "wandb_project wandb_name wandb_run_id wandb_mode wandb_entity wandb_watch wandb_log_model "
        "mlflow_tracking_uri mlflow_experiment_name mlflow_run_name hf_mlflow_log_artifacts comet_api_key "
        "comet_workspace comet_project_name comet_experiment_key comet_mode comet_online "
        "comet_experiment_config otel_metrics_host otel_metrics_port trackio_project_name trackio_run_name "
        "trackio_space_id swanlab_project swanlab_experiment_name swanlab_description swanlab_mode "
        "swanlab_workspace swanlab_api_key swanlab_log_model swanlab_web_host swanlab_api_host "
        "swanlab_log_completions swanlab_completion_log_interval swanlab_completion_max_buffer "
        "swanlab_lark_webhook_url swanlab_lark_secret",
    ),
    # machines
    "deepspeed": absent(f"DeepSpeed is not used: {SHARDS}"),
    "deepcompile": option_of("deepspeed", "DeepSpeed is not used"),
    "fsdp": absent(f"FSDP is not used: {SHARDS}"),
    "fsdp_config": grouped(),
    "fsdp_version": needless("FSDP is not used"),
    "fsdp_final_state_dict_type": needless("FSDP is not used"),
    **each(
        grouped(),
        "dp_shard_size dp_replicate_size tensor_parallel_size context_parallel_size sequence_parallel_degree "
        "expert_parallel_size",
    ),
    **each(
        option_of("expert_parallel_size", SHARDS),
        "expert_parallel_backend expert_parallel_num_nvl_bytes expert_parallel_num_rdma_bytes "
        "expert_parallel_token_capacity expert_parallel_fallback_on_unsupported expert_parallel_save_dispatch",
    ),
    "accelerator_config": absent("Accelerate is not used"),
    **each(
        needless(_DDP),
        "ddp ddp_timeout ddp_bucket_cap_mb ddp_broadcast_buffers ddp_find_unused_parameters world_size local_rank",
    ),
    "use_ray": absent(_RAY),
    "ray_num_workers": grouped(),
    **each(needless(_RAY), "ray_run_name resources_per_worker"),
    # preferences, rewards, teachers
    **each(grouped(), "rl reward_model process_reward_model"),
    **each(
        grouped(),
        "rl_beta dpo_beta orpo_alpha simpo_gamma cpo_alpha kto_desirable_weight kto_undesirable_weight "
        "dpo_label_smoothing dpo_loss_type dpo_loss_weights dpo_use_weighting precompute_ref_log_probs",
    ),
    "rpo_alpha": option_of("rl", "is not an option of the method here"),
    **each(
        needless(_RL),
        "trl vllm ebft dpo_use_logits_to_keep dpo_norm_loss dpo_generate_during_eval dpo_use_liger_kernel "
        "dpo_padding_free center_rewards_coefficient max_prompt_len num_labels "
        "rl_adapter_ref_model reward_model_lora",
    ),
    "kd_trainer": blocks(_TEACHER),
    **each(
        option_of("kd_trainer", _TEACHER),
        "kd_ce_alpha kd_alpha kd_temperature kd_beta kd_normalize_topk kd_online_server_base_url "
        "kd_online_topk kd_online_server kd_online_server_model kd_online_timeout kd_online_max_new_tokens "
        "kd_temperature_min",
    ),
    # Axolotl's own
    **each(
        needless(_INNER),
        "is_preprocess preprocess_iterable total_num_tokens total_supervised_tokens sample_packing_eff_est "
        "axolotl_config_path",
    ),
    **each(
        needless(_CHAT),
        "gradio_title gradio_share gradio_server_name gradio_server_port gradio_max_new_tokens gradio_temperature",
    ),
    **each(
        needless("Axolotl itself ignores it"),
        "full_finetune early_stopping",
    ),
    "spectrum_top_fraction": blocks(
        "tunes the layers with the most signal (Spectrum); Luthier tunes all, or LoRA"
    ),
    "spectrum_model_name": option_of("spectrum_top_fraction", "Spectrum is not there"),
}
