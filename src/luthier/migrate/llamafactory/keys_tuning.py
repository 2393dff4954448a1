"""Arguments about what is tuned and how: adapters, stages, losses, optimizers, monitors."""

from luthier.migrate.draft import Rule
from luthier.migrate.rules import absent, blocks, each, grouped, needless, option_of, unless

_REINFORCED = "belongs to PPO"
_IMAGES = "trains parts of an image or sound model; Luthier trains on text only"
_LAYERWISE = "weights are updated together, after the backward pass"
_TARGETS = "holds for all hidden matrices"
_SIDES = "the shorter side of a matrix is projected"
_LOSS = "is no option of the method here"
_SWANLAB = "nothing is sent to SwanLab; the run's folder has its metrics and report"

KEYS: dict[str, Rule] = {
    "stage": grouped(),
    "finetuning_type": grouped(),
    # LoRA
    "lora_rank": grouped(),
    "lora_alpha": grouped(),
    "lora_dropout": grouped(),
    "lora_target": grouped(),
    "additional_target": grouped(),
    "use_rslora": grouped(),
    "use_dora": grouped(),
    "loraplus_lr_ratio": grouped(),
    "loraplus_lr_embedding": option_of("loraplus_lr_ratio", "embeddings have no adapters of their own"),
    "pissa_init": grouped(),
    "pissa_iter": grouped(),
    "pissa_convert": needless("an adapter always is one of the original model"),
    "create_new_adapter": grouped(),
    # other ways to choose weights
    "freeze_trainable_layers": grouped(),
    "freeze_trainable_modules": grouped(),
    "freeze_extra_modules": grouped(),
    "use_llama_pro": grouped(),
    "module_dropout": grouped(),
    "oft_rank": grouped(),
    "oft_block_size": grouped(),
    "oft_target": grouped(),
    "module_lr_groups": absent("one learning rate holds for all weights"),
    # losses
    "use_dft_loss": grouped(),
    "use_asft_loss": grouped(),
    "asft_alpha": option_of("use_asft_loss", _LOSS),
    "use_eaft_loss": grouped(),
    "eaft_alpha": grouped(),
    "use_chunked_ce_loss": needless("the loss never holds all logits at once"),
    "chunked_ce_num_chunks": needless("the loss never holds all logits at once"),
    "chunked_ce_upcast_logits": needless("the loss is always computed in float32"),
    "pure_bf16": grouped(),
    # preferences and reinforcement: their stages are refused, elsewhere these do nothing
    **each(
        grouped(),
        "pref_beta pref_loss dpo_label_smoothing kto_chosen_weight kto_rejected_weight simpo_gamma ld_alpha "
        "ref_model",
    ),
    **each(
        unless("stage", "sft pt", "is not added to the loss"),
        "pref_ftx pref_bco_weight",
    ),
    **each(
        unless("stage", "sft pt", "the reference is a model with whole weights (reference.name)"),
        "ref_model_adapters ref_model_quantization_bit",
    ),
    **each(
        needless(_REINFORCED),
        "ppo_buffer_size ppo_epochs ppo_score_norm ppo_target ppo_whiten_rewards reward_model "
        "reward_model_adapters reward_model_quantization_bit reward_model_type",
    ),
    # optimizers
    **each(grouped(), "use_galore galore_rank galore_update_interval galore_scale"),
    "galore_target": option_of("use_galore", _TARGETS, "all", ["all"]),
    "galore_proj_type": option_of("use_galore", _SIDES, "std"),
    "galore_layerwise": option_of("use_galore", _LAYERWISE),
    **each(grouped(), "use_apollo apollo_rank apollo_update_interval apollo_scale apollo_scale_type"),
    "apollo_target": option_of("use_apollo", _TARGETS, "all", ["all"]),
    "apollo_proj": option_of("use_apollo", "the projection is drawn at random", "random"),
    "apollo_proj_type": option_of("use_apollo", _SIDES, "std"),
    "apollo_layerwise": option_of("use_apollo", _LAYERWISE),
    "apollo_scale_front": option_of("use_apollo", "updates are scaled once, behind"),
    **each(
        grouped(),
        "use_badam badam_mode badam_start_block badam_switch_mode badam_switch_interval badam_update_ratio "
        "badam_mask_mode badam_verbose",
    ),
    "use_adam_mini": grouped(),
    "use_muon": grouped(),
    # images and sound
    "freeze_vision_tower": grouped(),
    "freeze_multi_modal_projector": grouped(),
    "freeze_language_model": blocks(_IMAGES),
    "train_mm_proj_only": blocks(_IMAGES),
    "funaudiochat_full_audio_tuning": blocks(_IMAGES),
    "funaudiochat_freeze_audio_tower": blocks(_IMAGES),
    # evaluation and reports
    "compute_accuracy": absent("token accuracy is not measured; eval.metrics measure generated answers"),
    "compute_endpointing_metrics": absent("labels of speech ends are not measured"),
    "compute_wer_cer": absent("word error rates are not measured"),
    "eval_num_samples": grouped(),
    "eval_loss_on_full_dataset": needless("the evaluation loss is always over all held-out rows"),
    "eval_max_new_tokens": grouped(),
    "disable_shuffling": absent("rows are shuffled in every epoch"),
    "early_stopping_steps": grouped(),
    "plot_loss": needless("the run's report has the curves"),
    "include_effective_tokens_per_second": needless("tokens a second are always written"),
    "use_swanlab": absent(_SWANLAB),
    **each(
        option_of("use_swanlab", _SWANLAB),
        "swanlab_project swanlab_workspace swanlab_run_name swanlab_mode swanlab_api_key swanlab_logdir "
        "swanlab_lark_webhook_url swanlab_lark_secret",
    ),
    # other back ends
    "use_mca": needless("Luthier has its own training loop"),
    "use_megatron_bridge": needless("Luthier has its own training loop"),
    "use_hyper_parallel": needless("Luthier has its own training loop"),
    "hyper_parallel_args": absent("HyperParallel is another training loop"),
    "hyper_parallel_cp_size": absent("rows are not split over devices", 1),
}
