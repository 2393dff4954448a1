"""A GGUF file decoded and computed in transformers, where llama.cpp is not there to run it.

Weights are read by transformers' own reader of such files where it knows the architecture, and else by turning what
the writer did around; both get the configuration of the trained model. So what the file says in numbers is compared
with that configuration, key by key, and its tokenizer is built anew from the file alone.
"""

from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GgufConfig, LlamaConfig, PreTrainedTokenizerFast

from luthier.data.chat import ChatTemplate
from luthier.errors import DataError, ModelError
from luthier.export.gguf.known import Architecture, architecture
from luthier.export.verify.engines._torch import TorchModel
from luthier.export.verify.file_numbers import decoded, wrong_numbers
from luthier.export.verify.file_words import FileWords
from luthier.models.compat import bars_on_terminals_only

READ_BY_TRANSFORMERS = ("gemma2", "gemma3_text", "llama", "mistral", "phi3", "qwen2", "qwen3", "qwen3_moe")
"""Whose tensors its reader turns back by itself."""


class InReader(TorchModel):
    """A GGUF file, decoded to fp32.

    Args:
        file: the GGUF.
        config: transformers' configuration of the model that the file was made of.

    Raises ModelError if it cannot be read, or is no file of such a model.
    """

    name = "transformers, from the decoded file"
    caveat = (
        "These are the file's numbers, not llama.cpp itself: install it with pip install 'luthier[llama]' to run "
        "the file in the program that will run it."
    )

    def __init__(self, file: Path, config: Any):
        try:
            self._file = gguf.GGUFReader(file)
            self._words = FileWords(self._file)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ModelError(f"{file} cannot be read as a GGUF: {error}") from error
        config = deepcopy(config)
        config.tie_word_embeddings = all(one.name != "output.weight" for one in self._file.tensors)
        if hasattr(config, "quantization_config"):
            del config.quantization_config  # the file's weights are decoded
        known = architecture(config)
        self._wrong = list(wrong_numbers(self._file, config))
        self._model: Any = _model(file, self._file, known, config).eval()
        self._template = _template(self._words, self._file)

    def faults(self) -> list[str]:
        """Numbers of the file that are not the model's."""
        return self._wrong + ([self._words.fault] if self._words.fault else [])

    def ids(self, text: str) -> list[int]:
        """Tokens of a text, by the file."""
        return self._words.ids(text)


def _template(words: FileWords, file: gguf.GGUFReader) -> ChatTemplate | None:
    if words.template is None or words.backend is None:
        return None
    special = {f"{which}_token": text for which in ("bos", "eos") if (text := words.special(which, file))}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words.backend, **special)
    try:
        return ChatTemplate(tokenizer, str(words.template))
    except DataError:
        return None


def _model(path: Path, file: gguf.GGUFReader, known: Architecture, config: Any) -> Any:
    if config.model_type not in READ_BY_TRANSFORMERS:
        return _turned_around(file, known, config)
    if config.model_type == "mistral":  # in such a file it is a llama, and so for this reader
        values = {
            key: value
            for key, value in config.to_dict().items()
            if key not in ("model_type", "sliding_window")
        }
        config = LlamaConfig(**values)
    try:
        with bars_on_terminals_only():
            return AutoModelForCausalLM.from_pretrained(
                path.parent,
                gguf_file=path.name,
                config=config,
                dtype=torch.float32,
                quantization_config=GgufConfig(dequantize=True),
                local_files_only=True,
            )
    except (ValueError, KeyError, RuntimeError, OSError, NotImplementedError) as error:
        raise ModelError(f"transformers cannot read {path}: {str(error).strip().splitlines()[0]}") from error


def _turned_around(file: gguf.GGUFReader, known: Architecture, config: Any) -> Any:
    """A model with the file's weights, for architectures that transformers' reader does not know."""
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    inside = {tensor.name: tensor for tensor in file.tensors}
    weights = dict(model.named_parameters())  # tied ones once
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(_original(known, name, weight.shape, inside))
    return model


def _original(known: Architecture, name: str, shape: torch.Size, inside: Mapping[str, Any]) -> Tensor:
    """What a weight was before the writer moved its values, or added one to each.

    The writer's own steps are taken on the places 0, 1, 2 ... instead of values: where each place went is what must
    be undone.
    """
    places = torch.arange(shape.numel(), dtype=torch.float64).reshape(shape)
    ((other, moved),) = known.changed(name, places)
    moved = moved.double()
    added = float(moved.min())
    target = known.name_of(other)
    if target not in inside:
        raise ModelError(f"the file has no tensor {target}.")
    values = torch.from_numpy(np.array(decoded(inside[target]), np.float32)).reshape(-1) - added
    found = torch.empty(shape.numel())
    found[(moved - added).long().reshape(-1)] = values
    return found.reshape(shape)
