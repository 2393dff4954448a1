"""llama.cpp with products in 32 bits: all else is its own, so what is left of a difference is not its rounding.

llama.cpp tells of every step that it has computed (`cb_eval`). Where that is a product with a weight of the file, the
result is replaced by the product of the same input with the decoded weight, in fp32, before llama.cpp goes on. What
llama.cpp itself had made of it is first compared with the product of the rounded input (`rounded_inputs.py`).

Shape suffixes: T tokens, N outputs, K inputs, V vocabulary.
"""

import ctypes
from collections.abc import Collection, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import gguf
import numpy as np
import torch
from gguf.constants import GGMLQuantizationType
from torch import Tensor

from luthier.errors import ModelError
from luthier.export.gguf.llama import heard, library
from luthier.export.verify.engines.llama_cpp import InLlamaCpp
from luthier.export.verify.file_numbers import decoded
from luthier.export.verify.rounded_inputs import ROUNDED

CHECKED = 4
"""So many of a product's last tokens are compared with the product of the rounded input."""
SUMS = 2.0**-20
"""Products are the same if they differ by no more than this part of their size: sums in fp32 in another order."""
F32 = 0


class _Node(ctypes.Structure):
    """`ggml_tensor` of ggml.h, up to its name."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * 10),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
    )


class InPlainLlamaCpp(InLlamaCpp):
    """A GGUF file in llama.cpp, its products with weights computed in fp32.

    Raises ModelError while it computes if a product cannot be followed.
    """

    def __init__(self, file: Path, longest: int, config: Any = None):
        super().__init__(file, longest, config)
        self.name += ", with products in 32 bits"
        self.products: dict[str, list[float]] = {}
        """For each weight that was multiplied with, at some tokens: which part of what llama.cpp's product lies off
        the exact one is the rounding of its input, by squares; 1 is all of it."""
        self._inside = {one.name: one for one in gguf.GGUFReader(file).tensors}
        self._error: Exception | None = None
        llama_cpp, ggml = library(), library("._ggml").libggml
        text_of = ctypes.CFUNCTYPE(ctypes.c_char_p, ctypes.c_void_p)
        self._name_of, self._step_of = text_of(("ggml_get_name", ggml)), text_of(("ggml_op_desc", ggml))
        self._callback = llama_cpp.ggml_backend_sched_eval_callback(self._computed)  # must live as long
        own = self._llama.context_params
        params = type(own).from_buffer_copy(own)
        params.cb_eval, params.n_seq_max = self._callback, 1
        with heard():
            self._context = llama_cpp.llama_init_from_model(self._llama._model.model, params)
        if not self._context:
            raise ModelError(f"llama.cpp cannot make a second context of {file}.")

    def __exit__(self, *what: object) -> None:
        library().llama_free(self._context)
        super().__exit__(*what)

    def logits(self, ids: Sequence[int], last: int) -> Tensor:
        """Scores behind each of the last tokens: [T, V], fp32."""
        llama_cpp, size = library(), len(ids)
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        batch = llama_cpp.llama_batch_init(size, 0, 1)
        batch.n_tokens = size
        for place, token in enumerate(ids):
            batch.token[place], batch.pos[place] = token, place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = place >= size - last
        status = llama_cpp.llama_decode(self._context, batch)
        llama_cpp.llama_batch_free(batch)
        if self._error is not None:
            raise ModelError(f"llama.cpp's products cannot be followed: {self._error}") from self._error
        if status:
            raise ModelError(f"llama.cpp could not compute {size} tokens (status {status}).")
        found = llama_cpp.llama_get_logits(self._context)
        return torch.from_numpy(np.ctypeslib.as_array(found, (last, self._llama.n_vocab())).copy())

    def greedy(self, ids: Sequence[int], most: int, ends: Collection[int]) -> list[int]:
        """Nothing: answers are those of llama.cpp as it is."""
        return []

    def unmet(self) -> list[str]:
        """Matrices of the file that were never multiplied with."""
        tied = "output.weight" not in self._inside
        looked_up = () if tied else ("token_embd.weight",)
        return [
            name
            for name, one in self._inside.items()
            if one.tensor_type in ROUNDED and name not in self.products and name not in looked_up
        ]

    def explained(self) -> tuple[float, str]:
        """Which part of what llama.cpp's products lie off the exact ones is the rounding of their inputs, at the middle
        one of the tokens and for the weight where that is least, and its name. At single tokens a number in the middle
        between two may have gone the other way."""
        return min(
            ((median(parts), name) for name, parts in self.products.items()), default=(0.0, "no weight")
        )

    def _computed(self, node: int, ask: bool, _: Any) -> bool:
        """Called by llama.cpp before (`ask`) and after each step; nothing may be raised here."""
        if self._error is not None:
            return False  # asked: of no interest; told: stop
        try:
            step = self._step_of(node)
            if step == b"MUL_MAT_ID":
                raise ModelError("products with stacked experts are not known here")
            weight = self._weight(node) if step == b"MUL_MAT" else None
            if weight is not None and not ask:
                self._replace(_Node.from_address(node), weight)
            return weight is not None if ask else True
        except Exception as error:
            self._error = error
            return False

    def _weight(self, node: int) -> str | None:
        """The weight of the file that a product is with, if its inputs are rounded for it."""
        found = _Node.from_address(node)
        for address, seen in ((node, found), (found.src[0], _Node.from_address(found.src[0]))):
            if self._name_of(address) != seen.name:
                raise ModelError("this llama.cpp lays out its tensors in another way than is known here")
        name = _Node.from_address(found.src[0]).name.decode()
        return name if name in self._inside and self._inside[name].tensor_type in ROUNDED else None

    def _replace(self, node: _Node, name: str) -> None:
        weight_NK = torch.from_numpy(np.asarray(decoded(self._inside[name]), np.float32))
        x_TK, y_TN = _values(_Node.from_address(node.src[1])), _values(node)
        if weight_NK.shape != (y_TN.shape[1], x_TK.shape[1]):
            raise ModelError(f"{name} is multiplied in another shape than it has")
        exact_TN = x_TK @ weight_NK.T
        some = slice(-CHECKED, None)
        kind = GGMLQuantizationType(self._inside[name].tensor_type)
        rounded_TN = ROUNDED[kind](x_TK[some]) @ weight_NK.T
        left_T = (y_TN[some] - rounded_TN).double().square().sum(1)
        off_T = (y_TN[some] - exact_TN[some]).double().square().sum(1)
        alike_T = left_T <= (SUMS * rounded_TN.double().norm(dim=1)) ** 2
        parts_T = torch.where(alike_T, 1.0, 1 - left_T / off_T)
        self.products.setdefault(name, []).extend(parts_T.tolist())
        y_TN.copy_(exact_TN)


def _values(node: _Node) -> Tensor:
    """The numbers of a matrix in llama.cpp's memory, not a copy: [rows, columns]."""
    columns, rows, *more = node.ne
    if node.type != F32 or list(more) != [1, 1] or node.nb[0] != 4:
        raise ModelError(f"{node.name.decode()} is no plain matrix in fp32")
    stride = node.nb[1] // 4
    room = np.ctypeslib.as_array(
        ctypes.cast(node.data, ctypes.POINTER(ctypes.c_float)), ((rows - 1) * stride + columns,)
    )
    return torch.from_numpy(room).as_strided((rows, columns), (stride, 1))
