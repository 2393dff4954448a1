"""How much memory a GGUF takes in llama.cpp, and how many tokens a second it writes where memory is the limit.

    memory  = file + 2 · context · Σ over layers of K/V heads · head size · 2 bytes + outputs of one batch in fp32
    speed   = bandwidth / (weights that every token reads + keys and values of the context so far)

A token reads every matrix once, but of the token embeddings one row, unless they are the head as well. The bandwidth is
what llama.cpp reaches there, not what the memory could do: llama.cpp's issue 26484 has 9.8 to 10.6 GB/s for a Raspberry
Pi 5 with five types of one small model (file size times tokens a second); its LPDDR4X-4267 on 32 lines could do 17.1.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from luthier.errors import ConfigError

BANDWIDTH = 10e9
"""Bytes a second of a Raspberry Pi 5 in llama.cpp's decoding."""
MEMORY = 8e9
"""Bytes of the Raspberry Pi 5 that is meant."""
SYSTEM = 1.2e9
"""Bytes left to its system and to llama.cpp itself."""
BATCH = 512
"""Tokens of a prompt that llama.cpp works on at a time."""
LEAST = 512
"""Tokens of context below which there is no use."""
STEP = 256


@dataclass(frozen=True)
class Decoder:
    """The numbers of a model that decide what its context takes."""

    context: int
    """Tokens that it can read."""
    windows: tuple[int | None, ...]
    """Of each layer: how far it sees; None: everything."""
    values: int
    """Keys and values of one token in one layer, in numbers."""
    vocabulary: int
    width: int

    def cache(self, tokens: int) -> float:
        """Bytes of keys and values in 16 bits after so many tokens."""
        return 2.0 * self.values * sum(tokens if w is None else min(tokens, w + BATCH) for w in self.windows)

    @property
    def buffers(self) -> float:
        """Bytes of what one batch computes: the outputs of all its tokens, and a few times its hidden states."""
        return 4.0 * BATCH * (self.vocabulary + 8 * self.width)


@dataclass(frozen=True)
class Prediction:
    """Of one file."""

    file: int
    """Bytes of the file."""
    read: int
    """Bytes of weights that a token reads."""
    context: int
    """Tokens of context that fit."""
    cache: float
    """Bytes of keys and values at that context."""
    buffers: float
    bandwidth: float

    @property
    def memory(self) -> float:
        """Bytes in all."""
        return self.file + self.cache + self.buffers

    @property
    def speed(self) -> float:
        """Tokens a second at the beginning of a conversation."""
        return self.bandwidth / self.read

    @property
    def speed_when_full(self) -> float:
        """Tokens a second at the end of the context."""
        return self.bandwidth / (self.read + self.cache)

    def as_json(self) -> dict[str, Any]:
        """All numbers, in bytes, tokens, and tokens a second."""
        return {
            "file": self.file,
            "read_per_token": self.read,
            "context": self.context,
            "cache": round(self.cache),
            "buffers": round(self.buffers),
            "memory": round(self.memory),
            "bandwidth": self.bandwidth,
            "tokens_per_second": round(self.speed, 2),
            "tokens_per_second_when_full": round(self.speed_when_full, 2),
        }


def decoder_of(facts: Mapping[str, Any], windows: tuple[int | None, ...]) -> Decoder:
    """From the numbers that the file has of its architecture."""
    heads = facts["attention.head_count_kv"]
    return Decoder(
        context=int(facts["context_length"]),
        windows=windows,
        values=heads * (facts["attention.key_length"] + facts["attention.value_length"]),
        vocabulary=int(facts["vocab_size"]),
        width=int(facts["embedding_length"]),
    )


def read_per_token(sizes: Iterable[tuple[str, int]], experts: tuple[int, int] | None = None) -> int:
    """Bytes of weights that a token reads, by the names and sizes of the file's tensors.

    Args:
        experts: how many a token goes through, of how many; None for a model without.
    """
    found = dict(sizes)
    share = 1.0 if experts is None else experts[0] / experts[1]
    total = sum(size * (share if "_exps." in name else 1) for name, size in found.items())
    # with a head of its own, the embeddings give one row only
    return round(total - (found.get("token_embd.weight", 0) if "output.weight" in found else 0))


def predict(
    decoder: Decoder, file: int, read: int, *, memory: float = MEMORY, bandwidth: float = BANDWIDTH
) -> Prediction:
    """What a file of so many bytes takes, with the longest context that fits.

    Raises ConfigError where not even a short one does.
    """
    room = memory - SYSTEM - file - decoder.buffers
    context = decoder.context
    while context > LEAST and decoder.cache(context) > room:
        context = max(LEAST, (context - 1) // STEP * STEP)
    if decoder.cache(context) > room:
        needed = file + decoder.buffers + decoder.cache(LEAST) + SYSTEM
        raise ConfigError(
            f"the file takes {file / 1e9:.1f} GB and runs in {needed / 1e9:.1f} GB with {LEAST} tokens of context and "
            f"the system; the Raspberry Pi has {memory / 1e9:.0f} GB. Give a smaller --type, such as q4_0, or train a "
            "smaller model."
        )
    return Prediction(file, read, context, decoder.cache(context), decoder.buffers, bandwidth)
