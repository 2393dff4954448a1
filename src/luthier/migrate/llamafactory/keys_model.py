"""Arguments about the model: loading, tokens, attention, quantisation, images, export, engines."""

from luthier.migrate.draft import Rule
from luthier.migrate.readers import real, text
from luthier.migrate.rules import absent, blocks, each, grouped, needless, option_of, to
from luthier.migrate.tokens import adds_described_tokens, adds_tokens

_IMAGES = "trains on images, video or sound; Luthier trains on text only"
_KT = "experts in RAM by KTransformers: Luthier keeps the whole model on the device (memory.activations saves some)"
_EXPORT = "belongs to an export: luthier export RUN --to merged"
_ENGINE = "belongs to an inference engine; Luthier answers by its own decoder (luthier chat)"

KEYS: dict[str, Rule] = {
    "model_name_or_path": grouped(),
    "adapter_name_or_path": grouped(),
    "adapter_folder": grouped(),
    "cache_dir": absent("the hub's own cache folder is used; set HF_HOME in the environment"),
    "use_fast_tokenizer": needless("tokenizers are always the fast ones"),
    "resize_vocab": needless("tokens that are added get their rows by themselves"),
    "split_special_tokens": absent("special tokens in rows are refused, not split"),
    "add_tokens": adds_tokens(),
    "add_special_tokens": adds_tokens(),
    "new_special_tokens_config": adds_described_tokens,
    "init_special_tokens": needless("new tokens start from their description, or from the mean of all"),
    "model_revision": to("model.revision", text),
    "low_cpu_mem_usage": needless("weights are always read without a second copy"),
    "rope_scaling": absent(
        "positions beyond the model's own are not scaled; data.max_length must fit the model"
    ),
    "flash_attn": needless("attention is exact and packed, by Luthier's own kernels"),
    "shift_attn": absent("LongLoRA's shifted attention is not there; attention is always whole"),
    "mixture_of_depths": blocks("changes the model to mixture-of-depths, which Luthier does not have"),
    "use_unsloth": needless("Luthier has its own fused layers (model.fused)"),
    "use_unsloth_gc": needless("memory.activations decides what is recomputed or moved to RAM"),
    "enable_liger_kernel": needless("Luthier has its own fused layers and loss (model.fused)"),
    "moe_aux_loss_coef": to("model.router_aux_weight", real),
    "disable_gradient_checkpointing": grouped(),
    "use_reentrant_gc": needless("recomputing is planned layer by layer (memory.activations)"),
    "upcast_layernorm": needless("norms are always computed in float32"),
    "upcast_lmhead_output": needless("the loss is always computed in float32"),
    "train_from_scratch": blocks("starts from random weights; Luthier tunes models that are trained"),
    "infer_backend": needless(_ENGINE),
    "offload_folder": needless(_ENGINE),
    "use_kv_cache": needless("answers are always made with a cache"),
    "use_kernels": needless("Luthier has its own kernels (model.fused)"),
    "use_v1_kernels": needless("Luthier has its own kernels (model.fused)"),
    "infer_dtype": needless(_ENGINE),
    "hf_hub_token": absent("tokens are not kept in files: `hf auth login`, or HF_TOKEN in the environment"),
    "ms_hub_token": absent("models come from the Hugging Face hub, or from a folder"),
    "om_hub_token": absent("models come from the Hugging Face hub, or from a folder"),
    "print_param_status": needless("the run's report says which weights are tuned"),
    "trust_remote_code": absent(
        "code from the hub is never run; models that need their own code do not load"
    ),
    "device_map": needless("model.device: auto takes a GPU when there is one"),
    # quantised base weights
    **each(grouped(), "quantization_method quantization_bit quantization_type double_quantization"),
    "quantization_device_map": needless("model.device: auto takes a GPU when there is one"),
    "fp8": absent("products are computed in model.dtype, not in FP8"),
    "fp8_backend": option_of("fp8", "products are computed in model.dtype"),
    "fp8_enable_fsdp_float8_all_gather": option_of("fp8", "products are computed in model.dtype"),
    # images, video, sound
    **each(
        blocks(_IMAGES),
        "image_max_pixels image_min_pixels image_do_pan_and_scan crop_to_patches image_resolution "
        "video_max_pixels video_min_pixels video_resolution video_fps video_maxlen use_audio_in_video "
        "audio_sampling_rate",
    ),
    # export
    **each(
        needless(_EXPORT),
        "export_dir export_size export_device export_quantization_bit export_quantization_dataset "
        "export_quantization_nsamples export_quantization_maxlen export_legacy_format export_hub_model_id",
    ),
    # engines
    **each(
        needless(_ENGINE),
        "vllm_maxlen vllm_gpu_util vllm_enforce_eager vllm_max_lora_rank vllm_config sglang_maxlen "
        "sglang_mem_fraction sglang_tp_size sglang_config sglang_lora_backend",
    ),
    # KTransformers
    "use_kt": absent(_KT),
    **each(
        option_of("use_kt", _KT),
        "kt_config kt_cpu_activation kt_weight_path kt_non_expert_weight_path kt_expert_checkpoint_path "
        "kt_use_lora_experts kt_lora_expert_num kt_lora_expert_intermediate_size kt_optimize_rule "
        "kt_maxlen kt_use_cuda_graph kt_mode kt_force_think cpu_infer chunk_size",
    ),
}
