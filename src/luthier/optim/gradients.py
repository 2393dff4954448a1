"""The gradients of everything that is trained, as few tensors: for adding up ranks, for the norm, for clearing.

Adapters are hundreds of small tensors, and a pass over them costs more calls than arithmetic. Their gradients
therefore lie end to end in one buffer (a `Home`), which autograd adds to in place. Large weights keep gradients
of their own, which are freed after each step: there a flat buffer saves nothing, and clearing it costs a pass.

Shape suffixes: n elements of a buffer.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

ROW = 1024  # elements summed at once for a norm; fp32 sums of many more lose digits (1e-2 at 134M on the CPU)


class Home:
    """Parameters and their gradients end to end in two buffers, of which they are views.

    Args:
        parameters: of one dtype and device, each once.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]):
        self.parameters = tuple(parameters)
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.weights_n = torch.cat([parameter.detach().flatten() for parameter in self.parameters])
        self.gradients_n = torch.zeros_like(self.weights_n)
        # .data: a version counter of its own, which tells whether anything was ever added to this gradient
        self._views = [view.data for view in self.split(self.gradients_n)]
        self._weights = self.split(self.weights_n)
        self._addresses = [weight.data_ptr() for weight in self._weights]
        for parameter, weight, view in zip(self.parameters, self._weights, self._views, strict=True):
            parameter.data, parameter.grad = weight, view

    def split(self, buffer_n: Tensor) -> list[Tensor]:
        """A buffer of this home's size as one view for each parameter."""
        parts = zip(buffer_n.split(self.sizes), self.parameters, strict=True)
        return [part.view(parameter.shape) for part, parameter in parts]

    def touched(self) -> list[bool]:
        """For each parameter whether it has ever had a gradient."""
        return [view._version > 0 for view in self._views]

    @torch.no_grad()
    def collect(self) -> None:
        """Brings back weights and gradients that somebody has put elsewhere."""
        places = zip(self.parameters, self._views, self._addresses, strict=True)
        for index, (parameter, view, address) in enumerate(places):
            if parameter.data_ptr() != address:
                self._weights[index].copy_(parameter)
                parameter.data = self._weights[index]
            if parameter.grad is view:
                continue
            if parameter.grad is None:
                self.split(self.gradients_n)[index].zero_()
            else:
                view.copy_(parameter.grad)
            parameter.grad = view


class Gradients:
    """The gradients of all trained parameters.

    A parameter that never had a gradient stays untouched. From its first one on it takes part in every step,
    and a step that gives it none counts as a gradient of zero.

    Args:
        parameters: everything that is trained, each once.
        homes: of those whose gradients lie end to end.
        keep: keep all gradients in place between steps, for CUDA graphs, which write to fixed addresses.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], homes: Sequence[Home] = (), keep: bool = False):
        self.homes, self.keep = list(homes), keep
        self._housed = {id(parameter) for home in self.homes for parameter in home.parameters}
        self.loose = [parameter for parameter in parameters if self.is_loose(parameter)]
        self._order = [*(p for home in self.homes for p in home.parameters), *self.loose]
        self._live: dict[int, bool] = {id(parameter): False for parameter in self._order}
        self._spent: dict[int, Tensor] = {}  # norms of parts of gradients that are used up and gone
        if keep:
            self.hold()

    def is_loose(self, parameter: nn.Parameter) -> bool:
        """Whether the parameter's gradient is a tensor of its own."""
        return id(parameter) not in self._housed

    def live(self, parameter: nn.Parameter) -> bool:
        """Whether the parameter takes part in updates."""
        return self._live[id(parameter)]

    def revive(self, parameter: nn.Parameter) -> None:
        """Has the parameter take part from now on, as one that a checkpoint has optimizer state for."""
        self._live[id(parameter)] = True

    def retire(self, parameter: nn.Parameter) -> None:
        """Has a parameter whose gradient is a tensor of its own rest until its next gradient."""
        assert self.is_loose(parameter), "those that lie end to end always have a gradient"
        self._live[id(parameter)], parameter.grad = False, None

    def spend(self, parameter: nn.Parameter) -> None:
        """Frees the gradient of a parameter that was updated within the backward pass; its norm is remembered."""
        gradient = parameter.grad
        assert gradient is not None and self.is_loose(parameter), "it was just used"
        self._spent[id(parameter)] = _parts(gradient)
        self._live[id(parameter)], parameter.grad = True, None

    def is_spent(self, parameter: nn.Parameter | None = None) -> bool:
        """Whether the parameter was updated within the backward pass of this step; without one, whether any was."""
        return bool(self._spent) if parameter is None else id(parameter) in self._spent

    def collect(self, total: Callable[[list[float]], list[float]] | None = None) -> None:
        """Gets the gradients ready for use after the last backward pass of a step.

        Args:
            total: adds numbers up over all ranks, so that they agree on what takes part. They call it equally
                often, because it depends only on what they have agreed on.
        """
        for home in self.homes:
            home.collect()
        if not all(self._live.values()):
            touched = [t for home in self.homes for t in home.touched()]
            touched += [p.grad is not None or self.is_spent(p) for p in self.loose]
            ranks = total([float(t) for t in touched]) if total else touched
            for parameter, count in zip(self._order, ranks, strict=True):
                self._live[id(parameter)] |= count > 0
        for parameter in self.loose:
            if self.live(parameter) and parameter.grad is None and not self.is_spent(parameter):
                _zero_gradient(parameter)

    def tensors(self) -> list[Tensor]:
        """Every gradient, as few tensors as possible. Call `collect` first."""
        loose = [parameter.grad for parameter in self.loose if parameter.grad is not None]
        return [*(home.gradients_n for home in self.homes), *loose]

    def norm(self) -> Tensor:
        """The L2 norm over all gradients together, a scalar in fp32 (fp64 for fp64) on their device."""
        if not self._spent:
            return total_norm(self.tensors())
        parts = [_parts(home.gradients_n) for home in self.homes]
        for parameter in self.loose:
            if (spent := self._spent.get(id(parameter))) is not None:
                parts.append(spent)
            elif parameter.grad is not None:
                parts.append(_parts(parameter.grad))
        return _joined(parts)

    def scale(self, factor: float) -> None:
        """Multiplies every gradient by `factor`."""
        torch._foreach_mul_(self.tensors(), factor)  # pyright: ignore[reportPrivateImportUsage]

    def clear(self) -> None:
        """Forgets this step's gradients."""
        self._spent.clear()
        for home in self.homes:
            home.collect()
            home.gradients_n.zero_()
        for parameter in self.loose:
            if not self.keep:
                parameter.grad = None
            elif parameter.grad is not None:
                parameter.grad.zero_()

    def hold(self) -> None:
        """Keeps all gradients in place from now on."""
        self.keep = True
        for parameter in self.loose:
            if parameter.grad is None:
                _zero_gradient(parameter)


def _zero_gradient(parameter: nn.Parameter) -> None:
    dtype = parameter.grad_dtype or parameter.dtype  # pyright: ignore[reportAttributeAccessIssue]
    parameter.grad = torch.zeros_like(parameter, dtype=dtype)


@torch.no_grad()
def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The L2 norm over all tensors together, in at least fp32, exact to about 1e-6 however many elements."""
    if not tensors:
        return torch.zeros(())
    return _joined([_parts(tensor) for tensor in tensors])


def _parts(tensor: Tensor) -> Tensor:
    """The norms of parts of a tensor, in at least fp32."""
    return _row_norms(tensor.to(torch.promote_types(tensor.dtype, torch.float32)))


def _joined(norms: Sequence[Tensor]) -> Tensor:
    """The norm of all parts together."""
    parts = torch.cat(list(norms))
    return torch.linalg.vector_norm(parts if len(parts) <= ROW else _row_norms(parts))


def _row_norms(tensor: Tensor) -> Tensor:
    flat_n = tensor.reshape(-1)
    whole = flat_n.numel() - flat_n.numel() % ROW
    rows = torch.linalg.vector_norm(flat_n[:whole].view(-1, ROW), dim=1)
    return torch.cat([rows, torch.linalg.vector_norm(flat_n[whole:])[None]])
