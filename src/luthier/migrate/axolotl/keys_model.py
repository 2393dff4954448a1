"""Keys about the model: loading, tokens, adapters, quantisation, attention, kernels, images."""

from luthier.migrate.draft import Rule
from luthier.migrate.readers import text
from luthier.migrate.rules import absent, blocks, each, grouped, needless, option_of, to
from luthier.migrate.tokens import adds_tokens

_IMAGES = "trains on images or sound; Luthier trains on text only"
_KERNELS = "Luthier has its own fused layers and loss (model.fused)"
_ATTENTION = "attention is exact and packed, by Luthier's own kernels"
_CLASS = "the class follows from the model's config.json"
_TOKENIZER = "the model's own tokenizer is used, a fast one"
_EXPERTS = "experts are computed as the model computes them"
_GUESS = "the model's family is read from its config.json"

KEYS: dict[str, Rule] = {
    "base_model": grouped(),
    "base_model_config": needless("config.json lies beside the weights"),
    "base_model_ignore_patterns": needless("only the files that are needed are downloaded"),
    "cls_model_config": needless(_CLASS),
    "model_type": grouped(),
    "type_of_model": grouped(),
    "revision_of_model": to("model.revision", text),
    "model_revision": to("model.revision", text),
    "model_config": absent("settings of the model are not changed; they are read from its config.json"),
    "overrides_of_model_config": absent(
        "settings of the model are not changed; they are read from config.json"
    ),
    "overrides_of_model_kwargs": absent(
        "settings of the model are not changed; they are read from config.json"
    ),
    "model_kwargs": absent("settings of the model are not changed; they are read from its config.json"),
    "rope_scaling": absent("positions beyond the model's own are not scaled"),
    "trust_remote_code": absent(
        "code from the hub is never run; models that need their own code do not load"
    ),
    "low_cpu_mem_usage": needless("weights are always read without a second copy"),
    "torch_dtype": needless("Axolotl ignores it; bf16, fp16 and float32 choose the precision"),
    "experimental_skip_move_to_device": needless("weights are read straight to the device"),
    "reinit_weights": blocks("starts from random weights; Luthier tunes models that are trained"),
    "device": grouped(),
    "device_map": needless("model.device: auto takes a GPU when there is one"),
    "max_memory": absent("memory.limit is one number, for where the process computes"),
    "gpu_memory_limit": grouped(),
    # tokenizer, tokens
    "tokenizer_type": needless(_TOKENIZER),
    "tokenizer_config": absent("the tokenizer is the one beside the model's weights"),
    "tokenizer_use_fast": needless(_TOKENIZER),
    "tokenizer_legacy": needless(_TOKENIZER),
    "tokenizer_use_mistral_common": needless(f"{_TOKENIZER}, with the chat template beside it"),
    "tokenizer_save_jinja_files": needless("the chat template is saved with the adapter or model"),
    "special_tokens": grouped(),
    "tokens": adds_tokens(),
    "added_tokens_overrides": absent("reserved tokens keep their names; model.new_tokens adds new ones"),
    "resize_token_embeddings_to_32x": needless("no row is added, unless tokens are"),
    "mean_resizing_embeddings": needless("new tokens start from their description, or from the mean of all"),
    "shrink_embeddings": absent("embeddings keep their size"),
    "embeddings_skip_upcast": needless("weights keep their precision"),
    "fix_untrained_tokens": absent("embeddings of untrained tokens stay as they are"),
    # adapters
    "adapter": grouped(),
    **each(
        grouped(),
        "lora_r lora_alpha lora_dropout lora_target_modules lora_target_linear lora_modules_to_save "
        "peft_use_rslora peft_use_dora loraplus_lr_ratio lora_target_parameters",
    ),
    **each(grouped(), "lora_model_dir peft_layers_to_transform peft_init_lora_weights"),
    "lora_fan_in_fan_out": needless("seen from the layers themselves"),
    "lora_on_cpu": needless("an adapter is small"),
    "merge_lora": needless("merging is a command of its own (luthier export RUN --to merged)"),
    "peft_layers_pattern": option_of(
        "peft_layers_to_transform", "layers are found by themselves (lora.layers)"
    ),
    "peft": absent("adapters start as usual (B = 0)"),
    "peft_layer_replication": blocks("trains on a deeper copy of the model, which Luthier does not make"),
    "peft_trainable_token_indices": absent("no rows of embeddings are trained on their own"),
    "peft_autocast_adapter_dtype": needless("the precision of adapters is the optimizer's matter"),
    "qlora_sharded_model_loading": needless("the whole model is on each device"),
    "loraplus_lr_embedding": option_of("loraplus_lr_ratio", "embeddings have no adapters of their own"),
    **each(absent("ReLoRA is not there: the adapter is kept to the end"), "relora relora_steps"),
    **each(
        option_of("relora", "ReLoRA is not there"),
        "relora_prune_ratio relora_cpu_offload relora_warmup_steps relora_anneal_steps relora_prune_method",
    ),
    **each(grouped(), "unfrozen_parameters lisa_n_layers lisa_step_interval lisa_layers_attribute"),
    # quantised weights
    **each(grouped(), "load_in_4bit load_in_8bit bnb_config_kwargs"),
    "gptq": needless("how weights are stored is read from the model's own config.json"),
    **each(
        needless("Axolotl itself ignores it"),
        "gptq_groupsize gptq_model_v1 gptq_disable_exllama torchdistx_path",
    ),
    "quantize_moe_experts": absent("experts are not quantised: they take 2 bytes each weight"),
    "model_quantization_config": absent("weights are read as they are stored, then kept in model.dtype"),
    "model_quantization_config_kwargs": option_of(
        "model_quantization_config", "weights are kept in model.dtype"
    ),
    "qat": grouped(),
    "quantization": absent("quantising is a step of its own, after training"),
    "llmcompressor": blocks("keeps pruned weights at zero (LLM Compressor), which Luthier does not have"),
    "use_onebitllms": blocks("trains one-bit weights, which Luthier does not have"),
    "nvfp4_merge_aware": absent("NVFP4 is not there"),
    "nvfp4_training": absent("products are computed in model.dtype"),
    **each(
        absent("products are computed in model.dtype, not in FP8"),
        "fp8 fp8_enable_fsdp_float8_all_gather dsv4_fp4_grouped_mode",
    ),
    # attention and kernels
    **each(
        needless(_ATTENTION),
        "attn_implementation flash_attention sdp_attention xformers_attention flex_attention eager_attention "
        "sage_attention flex_attn_compile_kwargs flash_optimum gemma4_hybrid_attn_impl fused_attn_kernel "
        "heads_k_stride ring_attn_func",
    ),
    "s2_attention": absent("shifted sparse attention is not there; attention is always whole"),
    "scaling_softmax": blocks("changes the model's attention (SSMax), which Luthier does not"),
    "scaling_softmax_factor": option_of("scaling_softmax", "SSMax is not there"),
    "scaling_softmax_bias": option_of("scaling_softmax", "SSMax is not there"),
    **each(
        needless(_KERNELS),
        "flash_attn_cross_entropy flash_attn_rms_norm flash_attn_fuse_qkv flash_attn_fuse_mlp "
        "unsloth_cross_entropy_loss unsloth_lora_mlp unsloth_lora_qkv unsloth_lora_o unsloth_rms_norm "
        "unsloth_rope lora_mlp_kernel lora_qkv_kernel lora_o_kernel lora_embedding_kernel "
        "chunked_cross_entropy chunked_cross_entropy_num_chunks cut_cross_entropy liger_rope liger_rms_norm "
        "liger_rms_norm_gated liger_layer_norm liger_swiglu liger_glu_activation liger_cross_entropy "
        "liger_fused_linear_cross_entropy liger_use_token_scaling use_liger_fused_rms_add use_kernels "
        "tiled_mlp tiled_mlp_num_shards tiled_mlp_use_original_mlp use_mamba_kernels use_glm_dsa_kernels "
        "use_dsv4_kernels mlp_kernel use_liger_kernel",
    ),
    **each(
        needless(_EXPERTS),
        "experts_implementation llama4_linearized_experts use_scattermoe use_sonicmoe use_densemixer "
        "moe_kernels dense_mixer",
    ),
    **each(
        needless(_GUESS),
        "is_falcon_derived_model is_llama_derived_model is_mistral_derived_model is_qwen_derived_model",
    ),
    # images and sound
    "processor_type": blocks(_IMAGES),
    "image_size": blocks(_IMAGES),
    "image_resize_algorithm": blocks(_IMAGES),
    "freeze_mm_modules": blocks(_IMAGES),
    "is_multimodal": blocks(_IMAGES),
}
