"""Means of weights over steps, and weights that stand in for others for a while.

After step t the mean moves by (1 - decay) / (1 - decay^t) towards the weights, so that it never remembers where
training began: it is the mean of all steps, with weights decay^(how long ago). With a decay of 1 all count alike
(Polyak and Juditsky, 1992; of the last steps only: Izmailov et al., 2018, arXiv:1803.05407).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Average:
    """A running mean of weights, in fp32 beside them.

    Args:
        parameters: what is trained.
        decay: how much of the mean stays at each step.
        first: the first step that counts, from 1.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float, first: int = 1):
        self.parameters, self.decay, self.first, self.count = list(parameters), decay, first, 0
        self.step = 0
        self._means: list[Tensor] = []

    @torch.no_grad()
    def after_step(self, masters: Mapping[Tensor, Tensor]) -> None:
        """Takes the weights of a step in; `masters` of those that have one."""
        self.step += 1
        if self.step < self.first:
            return
        weights = [masters.get(parameter, parameter).detach() for parameter in self.parameters]
        if not self._means:
            self._means = [w.to(torch.promote_types(w.dtype, torch.float32), copy=True) for w in weights]
            self.count = 1
            return
        self.count += 1
        done = 1 - self.decay**self.count
        share = (1 - self.decay) / done if done else 1 / self.count
        for mean, weight in zip(self._means, weights, strict=True):
            mean.lerp_(weight.to(mean.dtype), share)

    def weights(self) -> dict[nn.Parameter, Tensor]:
        """The mean of each weight; nothing before the first step that counts."""
        return dict(zip(self.parameters, self._means, strict=False))

    def state(self) -> list[Tensor]:
        """For checkpoints."""
        return [torch.tensor([self.step, self.count]), *self._means]

    def restore(self, state: Sequence[Tensor]) -> None:
        """Goes on from what `state` gave."""
        self.step, self.count = state[0].tolist()
        places = zip(state[1:], self.parameters, strict=False)
        self._means = [mean.to(parameter.device) for mean, parameter in places]


@contextmanager
def swapped(others: Mapping[nn.Parameter, Tensor]) -> Iterator[dict[nn.Parameter, Tensor]]:
    """Other weights in place of these, which are handed out and put back at the end."""
    own = {parameter: parameter.detach().clone() for parameter in others}
    put(others)
    try:
        yield own
    finally:
        put(own)


@torch.no_grad()
def put(weights: Mapping[nn.Parameter, Tensor]) -> None:
    """Writes these weights into their parameters."""
    for parameter, weight in weights.items():
        parameter.copy_(weight)
