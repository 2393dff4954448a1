"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter, 2017, arXiv:1711.05101)."""

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.adamw import adamw

from luthier.config.settings import settings


@settings
class AdamW:
    """Adam with decoupled weight decay; states in fp32, and fp32 masters for weights of lower precision."""

    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """Decay of the running mean of gradients."""

    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the running mean of squared gradients."""

    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the denominator."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Share of a weight, times the learning rate, taken off each step. Never from biases and norms."""

    def build(self, named_parameters: Iterable[tuple[str, nn.Parameter]], lr: float) -> torch.optim.Optimizer:
        """The optimizer over these parameters, in two groups: matrices, and vectors without decay."""
        matrices, vectors = [], []
        for _, parameter in named_parameters:
            (matrices if parameter.dim() > 1 else vectors).append(parameter)
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ]
        return MasterAdamW([g for g in groups if g["params"]], lr, (self.beta1, self.beta2), self.eps)


class MasterAdamW(torch.optim.Optimizer):
    """torch's AdamW arithmetic on fp32 masters: weights in 16 bit follow a copy that keeps small updates."""

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float):
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            parameters: list[Tensor] = [p for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in parameters if p.grad is not None]
            states = [self._state(p) for p in parameters]
            masters: list[Tensor] = [s.get("master", p) for s, p in zip(states, parameters, strict=True)]
            adamw(
                masters,
                [g.to(m.dtype) for g, m in zip(gradients, masters, strict=True)],
                [s["mean"] for s in states],
                [s["square"] for s in states],
                [],
                [s["step"] for s in states],
                foreach=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )
            for parameter, master in zip(parameters, masters, strict=True):
                if master is not parameter:
                    parameter.copy_(master)

    def _state(self, parameter: Tensor) -> dict[str, Tensor]:
        state = self.state[parameter]
        if not state:
            wide = parameter.dtype in (torch.float32, torch.float64)
            master = parameter if wide else parameter.detach().float()
            if not wide:
                state["master"] = master
            state["mean"], state["square"] = torch.zeros_like(master), torch.zeros_like(master)
            state["step"] = torch.tensor(0.0)
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the states bit for bit; torch's own would cast fp32 masters down to the weights' dtype.

        Settings such as decay stay those that this optimizer was built with.
        """
        numbered = [p for group in self.param_groups for p in group["params"]]
        self.state.clear()
        for number, saved in state_dict["state"].items():
            parameter = numbered[number]
            self.state[parameter] = {
                name: value if name == "step" else value.to(parameter.device) for name, value in saved.items()
            }
