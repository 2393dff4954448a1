"""A GGUF file in llama.cpp, through llama-cpp-python. That is an extra, as it is compiled when it is installed."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.export.gguf.llama import NEEDED, heard, installed, library
from luthier.export.verify.engine import Messages


class InLlamaCpp:
    """A GGUF file in llama.cpp on the CPU, with the settings that it runs with by default.

    Args:
        file: the GGUF.
        longest: tokens of the longest text that is asked for, the answer included.
        config: transformers' configuration of the model that the file was made of, to compare the file's numbers with.
        adapter: the GGUF of an adapter that is added to it.

    Raises ModelError if llama.cpp cannot load it, or is not there.
    """

    caveat = ""

    def __init__(self, file: Path, longest: int, config: Any = None, *, adapter: Path | None = None):
        if not installed():
            raise ModelError(f"{file} can be run with {NEEDED}")
        llama_cpp = library()
        self.name = f"llama.cpp (llama-cpp-python {llama_cpp.__version__})"
        self._file, self._config = file, config
        threads = torch.get_num_threads()  # its threads spin while they wait: no more than torch may use
        with heard() as told:
            try:
                self._llama: Any = llama_cpp.Llama(
                    str(file),
                    n_ctx=longest,
                    n_batch=longest,
                    n_ubatch=longest,
                    n_threads=threads,
                    n_threads_batch=threads,
                    n_gpu_layers=0,
                    logits_all=True,
                    verbose=False,
                    lora_path=str(adapter) if adapter else None,
                )
            except (ValueError, RuntimeError, AssertionError) as error:
                said = "".join(f" It said: {line.strip()}" for line in told[-1:])
                raise ModelError(f"llama.cpp cannot load {adapter or file}: {error}.{said}") from error

    @property
    def context(self) -> int:
        """Most tokens of a text: what was asked for, or what the model can read if that is less."""
        return min(self._llama.n_ctx(), self._llama._model.n_ctx_train())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._llama.close()

    def faults(self) -> list[str]:
        """Numbers of the file that are not the model's."""
        if self._config is None:
            return []
        import gguf

        from luthier.export.verify.file_numbers import wrong_numbers

        return list(wrong_numbers(gguf.GGUFReader(self._file), self._config))

    def ids(self, text: str) -> list[int]:
        """Tokens of a text."""
        return self._llama.tokenize(text.encode(), add_bos=False, special=True) if text else []

    def render(self, messages: Messages, tools: Sequence[Any] | None) -> str | None:
        """The text of a conversation, by the template in the file."""
        template = self._llama.metadata.get("tokenizer.chat_template")
        if template is None:
            return None
        ends = self._text(self._llama.token_eos()), self._text(self._llama.token_bos())
        formatter: Any = library(".llama_chat_format").Jinja2ChatFormatter(template, *ends)
        try:
            return formatter(messages=[dict(one) for one in messages], tools=tools).prompt
        except Exception as error:  # whatever a template raises
            return f"refused: {error}"

    def logits(self, ids: Sequence[int], last: int) -> Tensor:
        """Scores behind each of the last tokens: [T, V], fp32."""
        self._llama.reset()
        self._llama.eval(list(ids))
        return torch.from_numpy(np.array(self._llama.scores[len(ids) - last : len(ids)], np.float32))

    def greedy(self, ids: Sequence[int], most: int, ends: Collection[int]) -> list[int]:
        """The likeliest next tokens."""
        self._llama.reset()
        found: list[int] = []
        fed, seen = list(ids), 0
        while len(found) < most and (not found or found[-1] not in ends):
            self._llama.eval(fed)
            seen += len(fed)
            found.append(int(np.argmax(self._llama.scores[seen - 1])))
            fed = found[-1:]
        return found

    def _text(self, token: int) -> str:
        """The text of a special token; empty if there is none."""
        if token < 0:
            return ""
        found = library().llama_vocab_get_text(self._llama._model.vocab, token)
        return found.decode("utf-8", "replace") if isinstance(found, bytes) else ""
