"""A GGUF file in llama.cpp with room for many rows at once, through the functions of its library themselves.

llama-cpp-python's own class holds one conversation. Here rows of any lengths share one store of keys and values; what
is read for one row can be given to others, and a row can be forgotten while the others go on.

Shape suffixes: N rows of logits that were asked for, V vocabulary.
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.errors import ModelError, RunError
from luthier.export.gguf.llama import NEEDED, heard, installed, library

BYTES_OF_A_NUMBER = 2
"""llama.cpp keeps keys and values in 16 bit where nothing else is said."""


@dataclass(frozen=True)
class Read:
    """Tokens that a row goes on with."""

    row: int
    start: int
    """The place of the first of them in the row."""
    tokens: Sequence[int]


class LlamaModel:
    """The weights and the vocabulary of a file.

    Raises ModelError if llama.cpp cannot load it, or is not there.
    """

    def __init__(self, file: Path):
        if not installed():
            raise ModelError(f"{file} can be run with {NEEDED}")
        self.library = library()
        self.library.llama_backend_init()
        with heard() as said:
            self.pointer: Any = self.library.llama_model_load_from_file(
                str(file).encode(), self.library.llama_model_default_params()
            )
        if not self.pointer:
            raise ModelError(f"llama.cpp cannot load {file}: {_reason(said)}")
        vocabulary = self.library.llama_model_get_vocab(self.pointer)
        self.num_tokens: int = self.library.llama_vocab_n_tokens(vocabulary)
        """Entries of its logits."""
        self.context: int = self.library.llama_model_n_ctx_train(self.pointer)
        """Most tokens of prompt and answer together."""
        self.ends = tuple(
            token for token in range(self.num_tokens) if self.library.llama_vocab_is_eog(vocabulary, token)
        )
        """Tokens that llama.cpp ends an answer at."""
        self.most_rows: int = self.library.llama_max_parallel_sequences()
        """Rows that a context can have."""

    @property
    def name(self) -> str:
        """What runs it, for people."""
        return f"llama.cpp (llama-cpp-python {self.library.__version__})"

    @property
    def bytes_of_token(self) -> int:
        """Memory that the keys and values of one token take."""
        ask = self.library
        size = self._number("attention.key_length") or (
            ask.llama_model_n_embd(self.pointer) // ask.llama_model_n_head(self.pointer)
        )
        layers, heads = ask.llama_model_n_layer(self.pointer), ask.llama_model_n_head_kv(self.pointer)
        return 2 * layers * heads * size * BYTES_OF_A_NUMBER

    def close(self) -> None:
        """Frees the weights; its contexts must have been closed."""
        if self.pointer:
            self.library.llama_model_free(self.pointer)
            self.pointer = None

    def _number(self, key: str) -> int | None:
        """A number of the file under the name of its architecture; None: it has none."""
        kind = self._said("general.architecture")
        said = self._said(f"{kind}.{key}")
        return int(said) if said.isdecimal() else None

    def _said(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(128)
        self.library.llama_model_meta_val_str(self.pointer, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace")


class LlamaContext:
    """Rows that a model has read so far.

    Args:
        model: the weights.
        num_rows: most rows.
        num_tokens: most tokens of all rows together; what rows have in common counts once.

    Raises ModelError if llama.cpp does not have the memory.
    """

    def __init__(self, model: LlamaModel, *, num_rows: int, num_tokens: int):
        self._library, self._num_tokens = model.library, model.num_tokens
        settings = self._library.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = num_tokens, num_rows
        settings.kv_unified = True  # rows take from one store as they need, and can share
        settings.n_threads = settings.n_threads_batch = torch.get_num_threads()  # they spin while they wait
        # it warns of room for more tokens than one row may have, which rows are to share
        with heard() as said:
            self._pointer: Any = self._library.llama_init_from_model(model.pointer, settings)
        if not self._pointer:
            raise ModelError(
                f"llama.cpp cannot make room for {num_rows} answers and {num_tokens:,} tokens: {_reason(said)}; "
                "give fewer of them"
            )
        self.num_tokens: int = self._library.llama_n_ctx(self._pointer)
        """Most tokens of all rows together, rounded up by llama.cpp."""
        self._portion: int = self._library.llama_n_batch(self._pointer)
        self._memory: Any = self._library.llama_get_memory(self._pointer)
        self._batch: Any = self._library.llama_batch_init(self._portion, 0, 1)

    def read(self, reads: Sequence[Read]) -> Tensor:
        """Reads on in rows. The logits behind the last token of each: [N, V].

        Raises RunError if llama.cpp cannot.
        """
        tokens = [
            (token, read.start + place, read.row, place + 1 == len(read.tokens))
            for read in reads
            for place, token in enumerate(read.tokens)
        ]
        starts = range(0, len(tokens), self._portion)
        return torch.cat([self._decoded(tokens[start : start + self._portion]) for start in starts])

    def share(self, row: int, other: int) -> None:
        """Gives an empty row what another one has read."""
        self._library.llama_memory_seq_cp(self._memory, row, other, -1, -1)

    def forget(self, row: int) -> None:
        """Empties a row."""
        self._library.llama_memory_seq_rm(self._memory, row, -1, -1)

    def close(self) -> None:
        """Frees the memory."""
        if self._pointer:
            self._library.llama_batch_free(self._batch)
            self._library.llama_free(self._pointer)
            self._pointer = None

    def _decoded(self, tokens: Sequence[tuple[int, int, int, bool]]) -> Tensor:
        """Reads tokens, each with its place, its row and whether its logits are wanted."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for number, (token, place, row, wanted) in enumerate(tokens):
            batch.token[number], batch.pos[number], batch.logits[number] = token, place, wanted
            batch.n_seq_id[number], batch.seq_id[number][0] = 1, row
        fault = self._library.llama_decode(self._pointer, batch)
        if fault:
            raise RunError(f"llama.cpp could not read {len(tokens)} tokens (it says {fault})")
        shape = sum(wanted for *_, wanted in tokens), self._num_tokens
        if not shape[0]:
            return torch.empty(shape)
        logits = np.ctypeslib.as_array(self._library.llama_get_logits(self._pointer), shape)
        return torch.from_numpy(logits.copy())  # the next portion writes over them


def _reason(said: Sequence[str]) -> str:
    """The last that it said; the very last line only says that it failed."""
    return "; ".join(line.strip() for line in said[-3:]) or "it does not say why"
