"""The states of an elementwise optimizer for weights that lie end to end: buffers of which each weight has a view."""

from collections.abc import Callable, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from luthier.optim.gradients import Home
from luthier.optim.pieces import About, Piece, is_scalar

if TYPE_CHECKING:
    from luthier.optim.base import Algorithm


class HomeStates:
    """One piece for the whole home as soon as all weights in it have had equally many updates, else one for each.

    Args:
        home: the weights.
        algorithm: an elementwise one.
        state: the optimizer's states by parameter, in which those of the home are views.
        new: fresh states of a parameter, with its count of steps.
    """

    def __init__(
        self,
        home: Home,
        algorithm: "Algorithm",
        state: MutableMapping[Tensor, Any],
        new: Callable[[nn.Parameter], dict[str, Tensor]],
    ):
        self.home, self.algorithm, self._state, self._new = home, algorithm, state, new
        self._buffers: dict[str, Tensor] = {}
        self._views: dict[str, list[Tensor]] = {}
        self._common: dict[str, Tensor] | None = None  # the numbers that all weights have alike

    def pieces(self, live: Sequence[nn.Parameter], about: Callable[[nn.Parameter], About]) -> list[Piece]:
        """What the next update works on."""
        if self._common is None:
            fresh = {id(parameter) for parameter in live if parameter not in self._state}
            for index, parameter in enumerate(self.home.parameters):
                if id(parameter) in fresh:
                    self._house(index, self._new(parameter))
            if fresh:
                self._join()
        if self._common is not None:
            whole = {**self._buffers, **self._common}
            return [Piece(self.home.weights_n, self.home.gradients_n, whole, self._common["step"])]
        pieces = []
        for parameter in live:
            assert parameter.grad is not None, "those of a home always have a gradient"
            state = self._state[parameter]
            pieces.append(Piece(parameter, parameter.grad, state, state["step"], about(parameter)))
        return pieces

    def forget(self) -> None:
        """Takes over that some weights have no state any more."""
        self._common = None

    def bring(self) -> None:
        """Moves loaded states into the buffers."""
        self._common = None
        for index, parameter in enumerate(self.home.parameters):
            if parameter in self._state:
                self._house(index, self._state[parameter])
        self._join()

    def _house(self, index: int, made: dict[str, Tensor]) -> None:
        """Gives a parameter its views, filled with these states."""
        parameter = self.home.parameters[index]
        housed: dict[str, Tensor] = {}
        for name, value in made.items():
            if is_scalar(name, value, parameter):
                housed[name] = value.clone()
                continue
            if name not in self._buffers:
                self._buffers[name] = torch.zeros_like(self.home.weights_n, dtype=value.dtype)
                self._views[name] = self.home.split(self._buffers[name])
            housed[name] = self._views[name][index].copy_(value)
        self._state[parameter] = housed

    def _join(self) -> None:
        """Gives all weights one set of numbers, if they are equal."""
        if not all(parameter in self._state for parameter in self.home.parameters):
            return
        states = [self._state[parameter] for parameter in self.home.parameters]
        names = [name for name in states[0] if name not in self._buffers]
        if any(len({float(state[name]) for state in states}) > 1 for name in names):
            return
        self._common = {name: states[0][name] for name in names}
        for state in states:
            state.update(self._common)
