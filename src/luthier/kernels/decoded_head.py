"""An output embedding that is stored in few bits, decoded some rows at a time into one small buffer.

    logits[:, v] = hidden · W[v]ᵀ + bias[v]        gradient of hidden = Σ_v grad[:, v] · W[v]

where v are the rows of one block after the other. The head as a whole never lies in memory.

Shape suffixes: D hidden size, V vocabulary, C predictions of one chunk, B rows of one block.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from luthier.kernels.quant.base import Stored
from luthier.kernels.workspace import Workspace

BLOCK_BYTES = 32 << 20
"""Decoded rows at once. A product of at least some thousand rows is as fast as one with all of them."""
_MULTIPLE = 128


class DecodedHead:
    """A frozen weight [V, D] for the ops on the output head, which take it in the place of a tensor.

    Args:
        stored: the weight, by a scheme whose rows can be decoded apart.
        workspace: where rows are decoded to; heads that never work at the same time may share it.
        rows: rows of a block; absent: as many as `BLOCK_BYTES` has room for.
    """

    requires_grad: ClassVar[bool] = False

    def __init__(self, stored: Stored, workspace: Workspace, rows: int | None = None):
        self.stored, self.workspace = stored, workspace
        self.rows = rows or block_rows(stored.shape, stored.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """[V, D]."""
        return self.stored.shape

    @property
    def dtype(self) -> torch.dtype:
        """What products with it are computed in."""
        return self.stored.dtype

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.stored.device

    def __len__(self) -> int:
        return self.shape[0]

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Each block's place and its decoded rows [B, D], valid until the next one is asked for."""
        like = torch.empty(0, dtype=self.dtype, device=self.device)
        for part, block in parts_of(self.stored, self.rows):
            memory_BD = self.workspace.take("head", *block.shape, like=like)
            yield part, block.write(memory_BD)

    def logits_(self, hidden_CD: Tensor, bias_V: Tensor | None, out_CV: Tensor) -> Tensor:
        """Writes the raw logits into `out_CV` and returns it."""
        for part, weight_BD in self.blocks():
            torch.mm(hidden_CD, weight_BD.T, out=out_CV[:, part])
        return out_CV if bias_V is None else out_CV.add_(bias_V)

    def input_gradient_(self, grad_CV: Tensor, out_CD: Tensor) -> Tensor:
        """Writes the gradient of the hidden states into `out_CD` and returns it. Blocks add up in at least fp32."""
        total_CD = torch.zeros_like(out_CD, dtype=torch.promote_types(out_CD.dtype, torch.float32))
        for part, weight_BD in self.blocks():
            if total_CD.dtype == weight_BD.dtype:
                total_CD.addmm_(grad_CV[:, part], weight_BD)
            else:
                total_CD += grad_CV[:, part] @ weight_BD
        return out_CD.copy_(total_CD)


def block_rows(shape: tuple[int, int], dtype: torch.dtype) -> int:
    """Rows of a block: a round number of about `BLOCK_BYTES`, but no more than there are."""
    fitting = BLOCK_BYTES // (shape[1] * dtype.itemsize) // _MULTIPLE * _MULTIPLE
    return min(shape[0], max(_MULTIPLE, fitting))


def parts_of(stored: Stored, rows: int) -> Iterator[tuple[slice, Stored]]:
    """So many rows of a stored weight after the other: their place and the stored rows."""
    for start in range(0, stored.shape[0], rows):
        part = slice(start, min(start + rows, stored.shape[0]))
        yield part, stored.rows(part)
