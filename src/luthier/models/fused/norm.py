"""An RMS norm bound to its weight, as the halves of a fused layer use it."""

from dataclasses import dataclass

from torch import Tensor, nn

from luthier.kernels import rms_norm
from luthier.models.fused.parts import Norm


@dataclass(frozen=True)
class BoundNorm:
    """y = x / √(mean(x²) + eps) · (offset + weight), over the last dimension."""

    weight_D: Tensor
    eps: float
    offset: float

    @classmethod
    def of(cls, layer: nn.Module, norm: Norm | None) -> "BoundNorm | None":
        """The norm that `norm` names in the layer."""
        if norm is None:
            return None
        weight = layer.get_submodule(norm.name).weight
        assert isinstance(weight, Tensor)
        return cls(weight, norm.eps, norm.offset)

    @property
    def trained(self) -> bool:
        """Whether its weight gets a gradient."""
        return self.weight_D.requires_grad

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        """Writes the norm of x into `out`; returns 1 / rms, in fp32, without the last dimension."""
        return rms_norm.forward(x, self.weight_D.detach(), self.eps, self.offset, out=out)[1]

    def backward(
        self, grad: Tensor, x: Tensor, rstd: Tensor, out: Tensor, add_to: Tensor | None = None
    ) -> list[Tensor]:
        """Writes the gradient of x (+ `add_to`) into `out`; returns that of the weight, if it is trained."""
        _, grad_D = rms_norm.backward(
            grad,
            x,
            rstd,
            self.weight_D.detach(),
            self.offset,
            add_to=add_to,
            out=out,
            weight_grad=self.trained,
        )
        return [] if grad_D is None else [grad_D.to(self.weight_D.dtype)]
