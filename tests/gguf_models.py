"""Tiny random models of every architecture that can be written as a GGUF, with a tokenizer, in a folder."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from chat_samples import CHATML, TEXT
from luthier.models.splitting import BYTES, DIGITS, GPT2, IGNORING_MERGES, RULES
from tiny_models import build

SPECIAL: dict[str, dict[str, Any]] = {
    "llama": {
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"tie_word_embeddings": True},
    "qwen3_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "norm_topk_prob": True,
        "mlp_only_layers": [],
    },
    "gemma2": {
        "sliding_window": 6,
        "query_pre_attn_scalar": 8,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {"num_hidden_layers": 7, "sliding_window": 6, "query_pre_attn_scalar": 8},
    "phi3": {"original_max_position_embeddings": 256, "sliding_window": None},
    "olmo2": {},
    "olmo3": {"num_hidden_layers": 5, "sliding_window": 6},
    "granite": {
        "logits_scaling": 4.0,
        "residual_multiplier": 0.5,
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.25,
    },
    "smollm3": {"num_hidden_layers": 5, "use_sliding_window": False, "sliding_window": None},
}
"""What each needs besides `tiny_models.build`'s settings."""


def byte_merging(name: str = "qwen2") -> PreTrainedTokenizerFast:
    """A tokenizer that merges bytes and splits text by the rule of this name."""
    general = {special: usual for usual, special in IGNORING_MERGES.items()}
    (rule,) = (rule for rule, found in RULES.items() if found == general.get(name, name))
    backend = Tokenizer(models.BPE(ignore_merges=name in general))
    backend.pre_tokenizer = pre_tokenizers.Sequence([_step(part) for part in rule])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator([*TEXT, "It's 2026, they'll say 12345 and I'M 7"] * 3, trainer)
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<|im_start|>", "<|im_end|>")])
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    return tokenizer


def swallowing(keep: str = "") -> PreTrainedTokenizerFast:
    """Special tokens as Phi-3 has them: all but a few swallow the white space behind them, and `keep` does not."""
    backend = Tokenizer.from_str(byte_merging().backend_tokenizer.to_str())
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<unk>", "<s>", "<|endoftext|>")])
    ends = ("</s>", "<|user|>", "<|assistant|>", "<|end|>")
    backend.add_special_tokens([AddedToken(text, special=True, rstrip=text != keep) for text in ends])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}<|assistant|>\n<|user|>"
    )
    return tokenizer


def _step(part: str) -> Any:
    if part == DIGITS:
        return pre_tokenizers.Digits(individual_digits=True)
    if part in (GPT2, BYTES):
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=part == GPT2)
    return pre_tokenizers.Split(Regex(part), "isolated")


def saved(kind: str, folder: Path, **overrides: Any) -> PreTrainedModel:
    """The model of this type, which is also in the folder, with a tokenizer that has a chat template."""
    tokenizer = byte_merging()
    settings = {
        "intermediate_size": 64,
        "vocab_size": len(tokenizer) + 3,
        "eos_token_id": tokenizer.eos_token_id,
    }
    model = build(kind, **{**settings, **SPECIAL[kind], **overrides})
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model
