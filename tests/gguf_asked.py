"""What tests ask models and their GGUF files, and files made those of another model."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import AutoTokenizer

from chat_samples import TEXT
from gguf_models import byte_merging, saved
from luthier.data.chat import ChatTemplate
from luthier.data.tokens import TokenEncoder
from luthier.export.verify.engines._torch import TorchModel
from luthier.export.verify.prompts import Prompt, Prompts
from luthier.export.verify.verdict import Trained, trained_by

SAYINGS = [*TEXT, "It's 2026, they'll say 12345 and I'M 7.\n\n  Two  spaces\r\n\ttab", "a"]


def asked(tokenizer: Any) -> Prompts:
    """Conversations by the tokenizer's template, and plain text with control tokens in it."""
    template, encoder = ChatTemplate(tokenizer), TokenEncoder(tokenizer)
    found = []
    for number, text in enumerate(SAYINGS):
        messages = ({"role": "system", "content": "Be brief."},) * (number % 2) + (
            {"role": "user", "content": text},
        )
        written = template.prompt_text(list(messages))
        found.append(Prompt(written, tuple(encoder.encode(written).ids.tolist()), messages))
    raw = "<|im_start|>user\nhello<|im_end|>\n<think>x</think>"
    return Prompts([*found, Prompt(raw, tuple(encoder.encode(raw).ids.tolist()))], "these tests")


def trained(kind: str, folder: Path, **overrides: Any) -> Trained:
    model = saved(kind, folder, **overrides)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return trained_by(
        TorchModel(model, tokenizer), model.config, asked(tokenizer), 6, [tokenizer.eos_token_id]
    )


def damage(file: Path, what: str) -> None:
    """Makes the file another model's, in place."""
    opened = gguf.GGUFReader(file, "r+")
    fields = opened.fields

    def text(key: str) -> np.ndarray:
        return fields[key].parts[fields[key].data[0]]

    if what == "rope":
        field = fields["qwen3.rope.freq_base"]
        field.parts[field.data[0]][0] = 500.0
    elif what == "pre":
        text("tokenizer.ggml.pre")[:] = np.frombuffer(b"gpt-2", np.uint8)
    elif what == "template":
        written = text("tokenizer.chat_template")
        place = bytes(written).index(b"<|im_end|>")
        written[place : place + 10] = np.frombuffer(b"<|im_and|>", np.uint8)
    elif what == "tokens":
        field = fields["tokenizer.ggml.tokens"]
        one, other = (field.parts[field.data[byte_merging().convert_tokens_to_ids(c)]] for c in "te")
        one[:], other[:] = other.copy(), one.copy()
    else:
        (tensor,) = (tensor for tensor in opened.tensors if tensor.name == what)
        tensor.data[:] = tensor.data[::-1].copy()
    opened.data.flush()
