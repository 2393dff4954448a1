"""An ONNX graph in ONNX Runtime."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from luthier.errors import ModelError
from luthier.export.onnx.write import GRAPH, NEEDED, installed
from luthier.export.verify.engines._torch import TorchModel
from luthier.models.inference import load_tokenizer_folder

PAST, PRESENT = "past_key_values", "present"


@dataclass(frozen=True)
class _Out:
    """As a model of transformers gives it."""

    logits: Tensor
    past_key_values: dict[str, np.ndarray]


class _Graph:
    """The graph, called as a model of transformers is."""

    def __init__(self, file: Path):
        import onnxruntime  # pyright: ignore[reportMissingImports]

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        try:
            self._session: Any = onnxruntime.InferenceSession(str(file), options)
        except Exception as error:  # ONNX Runtime's own exceptions share no class
            first = str(error).strip().splitlines()[0]
            raise ModelError(f"ONNX Runtime cannot load {file}: {first}") from error
        self._inputs = {one.name: one for one in self._session.get_inputs()}
        self._outputs = [one.name for one in self._session.get_outputs()]

    def eval(self) -> "_Graph":
        """Itself: a graph does not train."""
        return self

    def parameters(self) -> Iterator[Tensor]:
        """A tensor where inputs are to be."""
        yield torch.empty(0)

    def __call__(
        self, input_ids: Tensor, past_key_values: dict[str, np.ndarray] | None = None, use_cache: bool = True
    ) -> _Out:
        rows, tokens = input_ids.shape
        past = past_key_values or {
            name: np.zeros((rows, one.shape[1], 0, one.shape[3]), np.float32)
            for name, one in self._inputs.items()
            if name.startswith(PAST)
        }
        earlier = next(iter(past.values())).shape[2]
        given = {
            "input_ids": input_ids.numpy(),
            "attention_mask": np.ones((rows, earlier + tokens), np.int64),
            "position_ids": np.arange(earlier, earlier + tokens)[None].repeat(rows, 0),
            **past,
        }
        asked: Sequence[str] = self._outputs if use_cache else ["logits"]
        made = self._session.run(asked, {name: given[name] for name in self._inputs})
        found = dict(zip(asked, made, strict=True))
        logits = torch.from_numpy(found.pop("logits"))
        return _Out(logits, {name.replace(PRESENT, PAST): one for name, one in found.items()})


class InOnnxRuntime(TorchModel):
    """The folder's graph on the CPU, token by token with the keys and values that it gives.

    Raises ModelError if ONNX Runtime is not there or cannot load it.
    """

    def __init__(self, folder: Path):
        if not installed("onnxruntime"):
            raise ModelError(f"{folder} can be run with {NEEDED}.")
        import onnxruntime  # pyright: ignore[reportMissingImports]

        self.name = f"ONNX Runtime {onnxruntime.__version__}"
        super().__init__(_Graph(folder / GRAPH), load_tokenizer_folder(folder))
