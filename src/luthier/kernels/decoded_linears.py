"""Stacked linear layers of which some are stored in few bits, decoded into one buffer that all groups of a model share.

The buffer is filled when it is needed and another group has used it since: once in a forward pass, once in a backward
pass, and not in between where the same group comes twice in a row.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from luthier.kernels.linears import Linear, PackedLinears
from luthier.kernels.quant.base import Stored
from luthier.kernels.workspace import Workspace

SHARED = "weights"
"""The name of the buffer."""


class DecodedLinears(PackedLinears):
    """Frozen layers as `PackedLinears` has them, their weights decoded for each use."""

    def __init__(self, layers: Sequence[Linear], workspace: Workspace):
        self.workspace = workspace
        super().__init__(layers)

    def refresh(self) -> None:
        """Weights and updates are read anew when they are next needed."""
        self.workspace.forget(SHARED, self)
        self._follow_biases()

    def unpack(self) -> None:
        """Nothing: the layers' weights are where they were."""

    def _pack(self) -> None:
        pass

    @torch.no_grad()
    def _filled(self) -> Tensor:
        weight = self.layers[0].weight_MK
        like = torch.empty(0, dtype=weight.dtype, device=weight.device)
        size = self.num_out + self.spare, self.num_in + self.spare
        return self.workspace.hold(SHARED, self, *size, like=like, fill=self._decode)

    def _decode(self, buffer: Tensor) -> None:
        for layer, home in self._homes(buffer):
            if isinstance(layer.weight_MK, Stored):
                layer.weight_MK.write(home)
            else:
                home.copy_(layer.weight_MK)
        buffer[: self.num_out, self.num_in :] = 0  # one layer's columns are no other's
        self._copy_masters(buffer)
