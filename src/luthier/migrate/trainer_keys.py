"""Arguments of transformers' Trainer (up to 5.23, with older names), which LLaMA-Factory takes as its own.

Axolotl hands some of them on under the same names.
"""

from luthier.migrate.draft import Rule
from luthier.migrate.readers import real, whole
from luthier.migrate.rules import absent, each, grouped, needless, option_of, to, when_on

SHARDS = "one process trains, or several with whole copies; sharding comes with the distribution work"
_DDP = "processes exchange gradients in Luthier's own way"
_HUB = "nothing is sent to the hub; upload the run's folder with the hub's own tool"
_LOADER = "rows are prepared once and read from a memory map"
_SWITCHED = "the command says what is done (luthier train, evaluate)"
_TRACKERS = "nothing is sent to a tracker; the run's folder has its metrics and report"
_MACHINE = "model.device says where to train"
_PROFILER = "no trace is recorded; `luthier bench` measures"
_WRITTEN = "every step is written to the run's folder"
_RAY = "Ray is not used; start the processes with torchrun"

KEYS: dict[str, Rule] = {
    # how long, in which portions
    "output_dir": grouped(),
    "run_name": needless("the run is named after its folder"),
    "overwrite_output_dir": needless("a run never writes over another one"),
    "num_train_epochs": grouped(),
    "max_steps": grouped(),
    "per_device_train_batch_size": grouped(),
    "per_gpu_train_batch_size": grouped(),
    "gradient_accumulation_steps": grouped(),
    "auto_find_batch_size": needless("micro-batches hold a number of tokens, and memory is planned before"),
    "max_grad_norm": grouped(),
    "label_smoothing_factor": grouped(),
    "average_tokens_across_devices": needless("the loss is always a mean over all tokens of a step"),
    "neftune_noise_alpha": when_on("train.neftune_noise_alpha", real),
    "seed": to("seed", whole),
    "data_seed": needless("seed fixes the order of rows too"),
    "full_determinism": needless("seed fixes everything that is drawn"),
    # learning rate and optimizer
    "learning_rate": grouped(),
    "lr_scheduler_type": grouped(),
    "lr_scheduler_kwargs": grouped(),
    "warmup_steps": grouped(),
    "warmup_ratio": grouped(),
    "optim": grouped(),
    "optim_args": absent("further options of the optimizer are not taken over"),
    "optim_target_modules": absent("the optimizer treats all weights alike"),
    "adafactor": absent("Adafactor is not there; adamw is used"),
    "weight_decay": to("optim.weight_decay", real),
    "adam_beta1": to("optim.beta1", real),
    "adam_beta2": to("optim.beta2", real),
    "adam_epsilon": to("optim.eps", real),
    # numbers
    "bf16": grouped(),
    "fp16": grouped(),
    "tf32": absent("products of float32 follow torch's own setting"),
    **each(
        needless("the run's precision holds for evaluation too"),
        "bf16_full_eval fp16_full_eval half_precision_backend fp16_opt_level fp16_backend",
    ),
    # memory and speed
    "gradient_checkpointing": grouped(),
    "gradient_checkpointing_kwargs": needless("memory.activations plans it layer by layer"),
    "activation_checkpointing": grouped(),
    "activation_checkpointing_kwargs": needless("memory.activations plans it layer by layer"),
    "torch_compile": grouped(),
    "torch_compile_backend": option_of(
        "torch_compile", "model.compile uses torch's own back end", "inductor"
    ),
    "torch_compile_mode": option_of("torch_compile", "model.compile uses the default mode"),
    "use_liger_kernel": needless("Luthier has its own fused layers (model.fused)"),
    "liger_kernel_config": needless("Luthier has its own fused layers (model.fused)"),
    "use_cache": needless("no cache of keys is kept in training"),
    "torch_empty_cache_steps": needless("memory is planned (memory.limit)"),
    "group_by_length": needless("rows are packed, so nothing is padded"),
    "train_sampling_strategy": absent("rows are shuffled and packed"),
    "length_column_name": needless("lengths are known when rows are packed"),
    # what is written
    **each(
        needless(_WRITTEN),
        "logging_strategy logging_steps logging_first_step logging_dir log_on_each_node "
        "logging_nan_inf_filter include_num_input_tokens_seen include_tokens_per_second",
    ),
    **each(needless("messages are few and plain"), "log_level log_level_replica disable_tqdm"),
    "report_to": absent(_TRACKERS, ["none"], []),
    **each(
        option_of("report_to", _TRACKERS),
        "project hub_project trackio_space_id trackio_project trackio_bucket_id trackio_static_space_id",
    ),
    # evaluation
    "do_train": needless(_SWITCHED),
    "do_eval": needless(_SWITCHED),
    "do_predict": needless(_SWITCHED),
    "eval_strategy": grouped(),
    "evaluation_strategy": grouped(),
    "eval_steps": grouped(),
    "eval_delay": absent("the first evaluation is after eval.every steps"),
    "eval_on_start": absent("the first evaluation is after eval.every steps"),
    "per_device_eval_batch_size": needless("evaluation packs rows like training"),
    "per_gpu_eval_batch_size": needless("evaluation packs rows like training"),
    **each(
        needless("the evaluation loss is summed up as it comes"),
        "prediction_loss_only eval_accumulation_steps eval_do_concat_batches eval_use_gather_object "
        "batch_eval_metrics include_inputs_for_metrics include_for_metrics",
    ),
    "load_best_model_at_end": grouped(),
    "metric_for_best_model": absent(
        "the best checkpoint is the one with the lowest loss", "loss", "eval_loss"
    ),
    "greater_is_better": option_of("metric_for_best_model", "the best checkpoint has the lowest loss"),
    "predict_with_generate": needless("answers to held-out rows are generated for the report (eval.samples)"),
    "sortish_sampler": needless("rows are packed"),
    "generation_max_length": to("eval.answer_tokens", whole),
    "generation_num_beams": absent("answers are generated token by token", 1),
    "generation_config": absent("answers are generated with the model's own settings"),
    # checkpoints
    "save_strategy": grouped(),
    "save_steps": grouped(),
    "save_total_limit": grouped(),
    "save_only_model": needless("checkpoints are whole, so that a run goes on exactly where it was"),
    "save_safetensors": needless("weights are always written as safetensors"),
    "save_on_each_node": needless("one process writes"),
    "save_first_step": needless("save when you like: an interrupted run saves itself"),
    "enable_jit_checkpoint": needless("a run that is stopped saves itself"),
    "resume_from_checkpoint": absent("to go on with a run: luthier train --resume RUN"),
    "ignore_data_skip": needless("data goes on by position, nothing is skipped over"),
    "restore_callback_states_from_checkpoint": needless("a checkpoint holds everything"),
    **each(
        absent(_HUB),
        "push_to_hub push_to_hub_model_id push_to_hub_organization push_to_hub_token hub_model_id "
        "hub_strategy hub_token hub_private_repo hub_always_push hub_revision",
    ),
    # rows
    **each(
        needless(_LOADER),
        "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers "
        "dataloader_prefetch_factor dataloader_multiprocessing_context dataloader_in_order "
        "remove_unused_columns label_names",
    ),
    "dataloader_drop_last": absent("the last step of an epoch has the rows that are left"),
    "past_index": needless("nothing is carried from one step to the next"),
    # machines
    "use_cpu": grouped(),
    "no_cuda": grouped(),
    **each(
        needless(_MACHINE),
        "use_mps_device local_rank _n_gpu tpu_num_cores tpu_metrics_debug mp_parameters "
        "jit_mode_eval use_ipex torchdynamo xpu_backend",
    ),
    "deepspeed": absent(f"DeepSpeed is not used: {SHARDS}"),
    "fsdp": absent(f"FSDP is not used: {SHARDS}", []),
    "fsdp_config": absent(f"FSDP is not used: {SHARDS}"),
    "fsdp_min_num_params": option_of("fsdp", SHARDS),
    "fsdp_transformer_layer_cls_to_wrap": option_of("fsdp", SHARDS),
    "accelerator_config": absent("Accelerate is not used"),
    "parallelism_config": absent(SHARDS),
    "tp_size": absent(SHARDS, 1),
    "ddp_timeout": needless("processes wait by Luthier's own limits"),
    **each(
        needless(_DDP),
        "ddp_backend ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph "
        "dispatch_batches split_batches ddp",
    ),
    "ray_num_workers": grouped(),
    **each(
        needless(_RAY),
        "ray_run_name ray_storage_path ray_storage_filesystem resources_per_worker placement_strategy "
        "ray_init_kwargs ray_scope master_addr master_port use_ray",
    ),
    # looking inside
    **each(
        needless(_PROFILER),
        "debug skip_memory_metrics enable_torch_profiler profiler_output_dir profiler_wait_steps "
        "profiler_warmup_steps profiler_active_steps profiler_repeat profiler_record_shapes "
        "profiler_profile_memory profiler_with_stack profile_modules",
    ),
    # Megatron Bridge
    **each(
        absent(f"Megatron is not used: {SHARDS}", 1),
        "tensor_model_parallel_size pipeline_model_parallel_size expert_model_parallel_size "
        "context_parallel_size virtual_pipeline_model_parallel_size",
    ),
    **each(
        needless("belongs to Megatron, which is not used"),
        "sequence_parallel "
        "recompute_granularity recompute_method recompute_num_layers account_for_embedding_in_pipeline_split "
        "account_for_loss_in_pipeline_split bias_activation_fusion apply_rope_fusion masked_softmax_fusion "
        "cross_entropy_loss_fusion moe_grouped_gemm moe_token_dispatcher_type calculate_per_token_loss "
        "use_distributed_optimizer overlap_param_gather overlap_grad_reduce use_packed_sequences "
        "mixed_precision megatron_pretrained_checkpoint export_hf_on_finish extra_config",
    ),
}
"""One entry a key. Those that are `grouped` are read together, in `trainer.py`."""
