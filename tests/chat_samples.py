# ruff: noqa: E501, RUF001 - templates and tokens are written as models have them
"""Small tokenizers and chat templates to test with, made here: nothing is downloaded."""

from functools import cache
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

SHARED = Path(__file__).resolve().parents[2] / "shared" / "templates"
"""Templates of real models, where the folder is there."""

TEXT = [
    "The quick brown fox jumps over the lazy dog.\n\nThen it sleeps, and the user asks the assistant why.",
    "system: You are a helpful assistant.\nuser: hello there\nassistant: hi! What can I do for you?\n",
    '{"name": "get_weather", "arguments": {"city": "Paris", "days": 3}}\n\n# Tools\n\nSome text  with spaces.',
    "word word words wordless. \n\n\n  indented\ttabbed\r\n; naïve café – “quotes” 😀 日本語",
]

TOKENS = [
    "<unk>", "<s>", "</s>", "<bos>", "<eos>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|eot_id|>",
    "<|start_header_id|>", "<|end_header_id|>", "<|begin_of_text|>", "<|python_tag|>", "<|eom_id|>",
    "<start_of_turn>", "<end_of_turn>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>",
    "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>", "<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>",
    "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>", "<｜tool▁outputs▁begin｜>", "<｜tool▁outputs▁end｜>",
    "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|end|>",
    "<end_of_utterance>", "[INST]", "[/INST]",
]  # fmt: skip
PLAIN_TOKENS = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]


@cache
def byte_level(eos: str = "<|im_end|>", trim: bool = True, swallow: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE, as GPT-2, Llama 3 and Qwen have it. `swallow`: control tokens eat white space, as in Phi-3."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.NFC()
    words = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    split = pre_tokenizers.Split(Regex(words), "isolated")
    levels = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, levels])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(TEXT * 3, trainer)
    return _wrap(backend, eos, "<s>", trim, swallow)


@cache
def sentence_piece(eos: str = "</s>") -> PreTrainedTokenizerFast:
    """BPE over text whose spaces are ▁, with one put in front, as Llama 2 and Mistral have it."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=special, show_progress=False)
    backend.train_from_iterator([line.replace("日本語😀", "") for line in TEXT * 3], trainer)
    return _wrap(backend, eos, "<s>", None, False)


def _wrap(
    backend: Tokenizer, eos: str, bos: str, trim: bool | None, swallow: bool
) -> PreTrainedTokenizerFast:
    backend.add_special_tokens(
        [AddedToken(token, special=True, normalized=False, rstrip=swallow) for token in TOKENS]
    )
    backend.add_tokens([AddedToken(token, normalized=False) for token in PLAIN_TOKENS])
    if trim is not None:
        backend.post_processor = processors.ByteLevel(trim_offsets=trim)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos, bos_token=bos, pad_token="<unk>")


CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA2 = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'system' %}"
    "{{ '<<SYS>>\n' + message['content'] + '\n<</SYS>>\n\n' }}{% elif message['role'] == 'assistant' %}"
    "{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)

MISTRAL = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] in ('user', 'system') %}"
    "{{ '[INST]' + message['content'] + '[/INST]' }}{% elif message.tool_calls is defined %}"
    "[TOOL_CALLS][{% for call in message.tool_calls %}{{ call.function | tojson }}{% endfor %}]{{ eos_token }}"
    "{% elif message['role'] == 'tool' %}[RESULT]{{ message.content }}[/RESULT]"
    "{% else %}{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)

THINKING = """{%- set ns = namespace(last=-1) -%}
{%- for message in messages[::-1] -%}
    {%- if ns.last < 0 and message.role == 'user' -%}{%- set ns.last = messages | length - 1 - loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\n' -}}
    {%- if message.role == 'assistant' -%}
        {%- set content = message.content or '' -%}
        {%- set reasoning = message.reasoning_content or '' -%}
        {%- if '</think>' in content -%}
            {%- set reasoning = content.split('</think>')[0].split('<think>')[-1] -%}
            {%- set content = content.split('</think>')[-1].lstrip() -%}
        {%- endif -%}
        {%- if loop.index0 > ns.last -%}{{- '<think>\n' + reasoning.strip() + '\n</think>\n\n' -}}{%- endif -%}
        {{- content -}}
        {%- for call in message.tool_calls or [] -%}
            {{- '\n<tool_call>\n' -}}{{- call.function | tojson -}}{{- '\n</tool_call>' -}}
        {%- endfor -%}
    {%- else -%}
        {{- message.content -}}
    {%- endif -%}
    {{- '<|im_end|>\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"""

HEADER_IN_USER_TURN = (
    "{% for message in messages %}{% if message.role == 'assistant' %}{{ message.content + '<|end|>\n' }}"
    "{% else %}{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}"
    "{% if message.role == 'user' %}{{ '<|assistant|>\n' }}{% endif %}{% endif %}{% endfor %}"
)

MACRO = (
    "{% macro turn(message) %}{{ '<|im_start|>' + message.role }}\n{{ message.content | trim }}<|im_end|>\n{% endmacro %}"
    "{% macro all(turns) %}{% for one in turns %}{{ turn(one) }}{% endfor %}{% endmacro %}"
    "{% set body %}{{ all(messages) }}{% endset %}{{ body }}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

JUMPING = (
    "{% for index, message in [[0, messages[0]]] if message.role == 'system' %}<|system|>{{ message.content }}<|end|>"
    "{% break %}{% endfor %}"
    "{% for message in messages %}{% if message.role == 'system' %}{% continue %}{% endif %}"
    "{% if message.role == 'assistant' %}<|assistant|>{{ message.content }}<|end|>{% continue %}{% endif %}"
    "<|user|>{{ message.content }}<|end|>"
    "{% if loop.last %}{% break %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% else %}the end of it{% endif %}"
)

MERGING = (
    "{% for message in messages %}{% if loop.first or loop.previtem.role != message.role %}"
    "{{ '<|im_start|>' + message.role + '\n' }}{% else %}{{ ' ' }}{% endif %}{{ message.content }}"
    "{% if loop.last or loop.nextitem.role != message.role %}{{ '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

UNENDED = (
    "{% for message in messages %}{{ '<|' + message.role + '|>' + message.content }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

GENERATION_TAGS = (
    "{% for i in range(messages | length) %}{{ '<|im_start|>' + messages[i].role + '\n' }}"
    "{% if messages[i].role == 'assistant' %}{% generation %}{{ messages[i].content + '<|im_end|>\n' }}{% endgeneration %}"
    "{% else %}{{ messages[i].content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

TRAINING_ONLY_TAIL = (
    "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

OURS = {
    "chatml": CHATML,
    "llama2": LLAMA2,
    "mistral": MISTRAL,
    "thinking": THINKING,
    "header_in_user_turn": HEADER_IN_USER_TURN,
    "macro": MACRO,
    "jumping": JUMPING,
    "merging": MERGING,
    "unended": UNENDED,
    "generation_tags": GENERATION_TAGS,
    "training_only_tail": TRAINING_ONLY_TAIL,
}


def all_templates() -> dict[str, str]:
    """Our own templates, and those of real models where they are."""
    shared = {path.stem: path.read_text(encoding="utf-8") for path in sorted(SHARED.glob("*.jinja"))}
    return {**OURS, **shared}


def tokenizer_for(name: str) -> PreTrainedTokenizerFast:
    """A tokenizer of the kind that models with this template have."""
    if name in ("llama2", "mistral", "llava_next"):
        return sentence_piece()
    eos = {
        "gemma": "<eos>",
        "deepseekv3": "<｜end▁of▁sentence｜>",
        "llama3_1": "<|eot_id|>",
        "phi3": "<|endoftext|>",
    }
    return byte_level(eos.get(name, "<|im_end|>"), trim=name != "qwen2_5", swallow=name == "phi3")
