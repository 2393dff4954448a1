"""How much a layer keeps from its forward pass for its backward pass, and what a layer says about that."""

from enum import Enum
from typing import Protocol, runtime_checkable


class Level(Enum):
    """What a layer keeps; everything else it needs in the backward pass is computed again."""

    KEEP_ALL = "keep all"
    """Every activation: nothing is recomputed, save what is cheaper to redo than to store."""
    KEEP_ATTENTION = "keep attention"
    """The input of each half and what attention made; the projections into both halves are recomputed."""
    KEEP_INPUT = "keep input"
    """The layer's input only; the whole layer is recomputed."""
    OFFLOAD_INPUT = "offload input"
    """Nothing on the device: the layer's input waits in the host's RAM. For GPUs."""


@runtime_checkable
class Plannable(Protocol):
    """A decoder layer whose level can be set. Its gradients must not depend on the level, not in the last bit."""

    @property
    def level(self) -> Level:
        """What it keeps from the next forward pass on; a pass under way is not touched. A plain attribute will do."""
        ...

    @level.setter
    def level(self, level: Level) -> None: ...

    @property
    def levels(self) -> tuple[Level, ...]:
        """Those that it knows. KEEP_ALL and KEEP_INPUT are always among them."""
        ...

    def bytes_per_token(self, level: Level) -> int:
        """Bytes on the device that it keeps for each token from its forward to its backward pass."""
        ...

    def flops_per_token(self, level: Level) -> float:
        """Floating-point operations that it does again for each token in its backward pass; 0 for KEEP_ALL."""
        ...
