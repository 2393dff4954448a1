"""Where tokens stand in a text, computed from how many bytes each of them is.

The tokens of a byte-level tokenizer lie end to end over the bytes of the text. If their widths add up to the
text's, each stands where those before it end; then the tokenizer need not keep track, which is a quarter of its
work. If they do not (a normaliser changed the text, a control token swallowed white space), it has to.
"""

import json
import unicodedata
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer


def token_widths(tokenizer: Tokenizer) -> NDArray[np.int64] | None:
    """The bytes of each token id; None if the tokenizer is not byte-level or changes texts in unknown ways."""
    parts: dict[str, Any] = json.loads(tokenizer.to_str())
    before = parts.get("pre_tokenizer") or {}
    steps = before.get("pretokenizers", [before])
    levels = [step for step in steps if step.get("type") == "ByteLevel"]
    normaliser = parts.get("normalizer")
    changes = [] if normaliser is None else normaliser.get("normalizers", [normaliser])
    if (parts.get("model") or {}).get("type") != "BPE" or not hasattr(tokenizer, "encode_batch_fast"):
        return None
    if len(levels) != 1 or levels[0].get("add_prefix_space", True):
        return None
    if any(change.get("type") != "NFC" for change in changes):
        return None
    # In the vocabulary a byte is written as one character; in an added token, text is text.
    vocabulary = tokenizer.get_vocab(with_added_tokens=False)
    widths = np.zeros(max(tokenizer.get_vocab().values()) + 1, dtype=np.int64)
    widths[list(vocabulary.values())] = [len(token) for token in vocabulary]
    for number, token in tokenizer.get_added_tokens_decoder().items():
        widths[number] = len(token.content.encode())
    return widths


def offsets_from_widths(text: str, widths_T: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """For each token its characters [start, end); None if the widths do not fit the text.

    A token that is a part of a character has the whole of it.
    """
    ends = np.cumsum(widths_T)
    total = int(ends[-1]) if len(ends) else 0
    if text.isascii():
        return np.stack([ends - widths_T, ends], axis=1) if total == len(text) else None
    raw = text.encode()
    if total != len(raw) or not unicodedata.is_normalized("NFC", text):
        return None
    if not widths_T.all():
        return None  # a token without bytes stands nowhere
    first_bytes = (np.frombuffer(raw, dtype=np.uint8) & 0xC0) != 0x80
    characters = np.cumsum(first_bytes)
    return np.stack([characters[ends - widths_T] - 1, characters[ends - 1]], axis=1)
