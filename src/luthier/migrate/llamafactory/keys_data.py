"""Arguments about data, and about generated answers."""

from luthier.migrate.draft import Rule
from luthier.migrate.readers import whole
from luthier.migrate.rules import absent, each, grouped, needless, to

_ANSWERS = "belongs to chat and prediction, not to training"

KEYS: dict[str, Rule] = {
    "template": grouped(),
    "dataset": grouped(),
    "eval_dataset": grouped(),
    "dataset_dir": grouped(),
    "media_dir": absent("images, video and sound are not read"),
    "data_shared_file_system": needless("tokens are cached where the cache folder is"),
    "cutoff_len": grouped(),
    "train_on_prompt": grouped(),
    "mask_history": grouped(),
    "streaming": grouped(),
    "buffer_size": to("data.window_rows", whole),
    "mix_strategy": grouped(),
    "interleave_probs": grouped(),
    "overwrite_cache": needless("the cache knows its rows and settings, so an old one is never used"),
    "preprocessing_batch_size": needless("rows are read as a stream"),
    "preprocessing_num_workers": needless("as many processes tokenise as there are cores (data.workers)"),
    "max_samples": grouped(),
    "eval_num_beams": needless(_ANSWERS),
    "ignore_pad_token_for_loss": needless("nothing is padded"),
    "val_size": grouped(),
    "eval_on_each_dataset": absent("held-out rows are evaluated together"),
    "packing": grouped(),
    "neat_packing": grouped(),
    "tool_format": needless("tools are written by the model's own chat template"),
    "default_system": absent("rows without a system message get the one of the model's chat template"),
    "enable_thinking": grouped(),
    "preserve_thinking": grouped(),
    "tokenized_path": needless("tokens are cached by themselves (data.cache)"),
    # generated answers
    "max_new_tokens": to("eval.answer_tokens", whole),
    **each(
        needless(_ANSWERS),
        "do_sample temperature top_p top_k num_beams max_length repetition_penalty length_penalty "
        "skip_special_tokens system_message stop",
    ),
    # evaluation of benchmarks
    **each(
        needless("belongs to benchmark evaluation, which is another command there"),
        "task task_dir batch_size lang n_shot save_dir download_mode",
    ),
}
