"""Keys about data: sets, templates, masks, packing, streams."""

from luthier.migrate.draft import Rule
from luthier.migrate.readers import whole
from luthier.migrate.rules import absent, each, grouped, needless, option_of, to

_PACKED = "rows are packed without seeing each other, whatever their lengths"
_CACHED = "tokens are cached by themselves (data.cache)"
_LOADER = "rows are prepared once and read from a memory map"
_POSE = "PoSE is not there: positions are those of the rows"

KEYS: dict[str, Rule] = {
    "datasets": grouped(),
    "test_datasets": grouped(),
    "pretraining_dataset": grouped(),
    "val_set_size": grouped(),
    "chat_template": grouped(),
    "chat_template_jinja": grouped(),
    "chat_template_kwargs": grouped(),
    "default_system_message": absent(
        "rows without a system message get the one of the model's chat template"
    ),
    "eot_tokens": needless("ends of turns are found in the model's own template"),
    "train_on_inputs": grouped(),
    "roles_to_train": grouped(),
    "shuffle_merged_datasets": grouped(),
    "shuffle_before_merging_datasets": needless("all rows are shuffled together in every epoch"),
    "curriculum_sampling": absent("rows are shuffled in every epoch"),
    "excess_length_strategy": grouped(),
    "min_sample_len": absent("short rows are kept; data.clean.min_characters leaves out short texts"),
    "streaming": grouped(),
    "streaming_multipack_buffer_size": to("data.window_rows", whole),
    "pretrain_multipack_buffer_size": to("data.window_rows", whole),
    "pretrain_multipack_attn": needless(_PACKED),
    "pretraining_sample_concatenation": needless("plain text is cut into rows of data.max_length"),
    **each(
        needless(_PACKED),
        "sample_packing eval_sample_packing sample_packing_group_size sample_packing_bin_size "
        "sample_packing_sequentially sample_packing_mp_start_method pad_to_sequence_len pad_to_multiple_of "
        "multipack_real_batches batch_flattening max_packed_sequence_len",
    ),
    **each(
        needless(_CACHED),
        "dataset_prepared_path skip_prepare_dataset num_dataset_shards_to_save dataset_keep_in_memory "
        "overwrite_cache",
    ),
    **each(
        absent("all rows of a set are used; give `rows` or `repeat` for fewer"),
        "dataset_shard_num dataset_shard_idx",
    ),
    "push_dataset_to_hub": absent("prepared rows are not sent anywhere"),
    "dataset_processes": needless("as many processes tokenise as there are cores (data.workers)"),
    "dataset_num_proc": needless("as many processes tokenise as there are cores (data.workers)"),
    "dataset_exact_deduplication": grouped(),
    **each(
        needless(_LOADER),
        "dataloader_pin_memory dataloader_num_workers dataloader_prefetch_factor remove_unused_columns",
    ),
    "dataloader_drop_last": absent("the last step of an epoch has the rows that are left"),
    "use_pose": absent(_POSE),
    **each(
        option_of("use_pose", _POSE),
        "pose_split_on_token_ids pose_max_context_len pose_num_chunks",
    ),
}
