"""Runs optimizers over parameters: what they all need and none should do for itself.

Weights of 16 bit follow masters in fp32, which keep updates that are too small for them, or are rounded by chance
(stochastic.py). Adapters lie end to end
(gradients.py). A weight that never had a gradient is left alone, and has no state.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from luthier.optim.average import Average
from luthier.optim.gradients import Gradients, Home
from luthier.optim.home_states import HomeStates
from luthier.optim.on_disk import OnDisk
from luthier.optim.pieces import About, Piece, is_scalar
from luthier.optim.stochastic import StochasticRounding

if TYPE_CHECKING:
    from luthier.optim.base import Algorithm


class Stepper(torch.optim.Optimizer):
    """Optimizers at work on groups of parameters.

    Args:
        groups: torch's parameter groups, each with its `weight_decay`.
        algorithms: what updates each group.
        lr: peak learning rate of groups without their own.
        about: what is known of each parameter, by `id`.
        end_to_end: parameters to lay end to end, those of one group, dtype and device together. Only
            weights that need no master, with gradients of their own dtype, move; the others stay.
    """

    gradients: Gradients
    """The gradients of all parameters, for whoever adds up ranks, clips and clears."""

    def __init__(
        self,
        groups: list[dict[str, Any]],
        algorithms: Sequence["Algorithm"],
        lr: float,
        about: Mapping[int, About],
        end_to_end: Sequence[nn.Parameter] = (),
    ):
        super().__init__(groups, {"lr": lr, "weight_decay": 0.0})
        self.algorithms, self._about = list(algorithms), about
        self._of = {id(p): a for a, g in zip(algorithms, self.param_groups, strict=True) for p in g["params"]}
        self._group = {id(p): number for number, g in enumerate(self.param_groups) for p in g["params"]}
        self.in_backward = False
        """Whether parameters are updated as soon as their gradients are whole (in_backward.py)."""
        chosen = {id(parameter) for parameter in end_to_end}
        self._homes = [_homes(group["params"], chosen) for group in self.param_groups]
        pairs = zip(self.algorithms, self._homes, strict=True)
        self._states = {
            id(home): HomeStates(home, algorithm, self.state, self._new)
            for algorithm, homes in pairs
            for home in homes
            if algorithm.elementwise
        }
        self.rounding: StochasticRounding | None = None
        """How bfloat16 weights take updates without masters; None: they have masters."""
        self.average: Average | None = None  # of the weights over steps, where that is what is kept
        self.on_disk: OnDisk | None = None  # where states lie, if not in RAM; to be set before the first step
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        self.gradients = Gradients(parameters, [home for homes in self._homes for home in homes])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Updates every parameter that has, or ever had, a gradient."""
        self.gradients.collect()
        for number, homes in enumerate(self._homes):
            loose = [p for p in self.param_groups[number]["params"] if self.gradients.is_loose(p)]
            due = [p for p in loose if self.gradients.live(p) and not self.gradients.is_spent(p)]
            self._update(number, homes, due)
        if self.average is not None:
            masters = {p: state["master"] for p, state in self.state.items() if "master" in state}
            self.average.after_step(masters)

    @torch.no_grad()
    def step_now(self, parameter: nn.Parameter) -> None:
        """Updates one parameter from its gradient, which is then gone; `step` leaves it out."""
        self._update(self._group[id(parameter)], (), [parameter])
        self.gradients.spend(parameter)

    def _update(self, number: int, homes: Sequence[Home], loose: Sequence[nn.Parameter]) -> None:
        """Updates weights of a group: whole homes, and parameters that have gradients of their own."""
        group, algorithm = self.param_groups[number], self.algorithms[number]
        self._update_by_chance([p for p in loose if self._has_no_master(p)], group, algorithm)
        loose = [p for p in loose if not self._has_no_master(p)]
        pieces = [piece for home in homes for piece in self._home_pieces(home)]
        pieces += [self._piece(p) for p in loose]
        steps = list({id(piece.step): piece.step for piece in pieces}.values())
        if steps:
            torch._foreach_add_(steps, 1)  # pyright: ignore[reportPrivateImportUsage]
            algorithm.update(pieces, group["lr"], group["weight_decay"])
        followers: list[Tensor] = [p for p in loose if "master" in self.state[p]]
        if followers:
            masters = [self.state[p]["master"] for p in followers]
            torch._foreach_copy_(followers, masters)  # pyright: ignore[reportPrivateImportUsage]
        # lists and views are updated past the version counters that caches of a weight go by
        increment_version([*(p for home in homes for p in home.parameters), *loose])

    def _update_by_chance(
        self, parameters: Sequence[nn.Parameter], group: dict[str, Any], algorithm: "Algorithm"
    ) -> None:
        """Updates bfloat16 weights without masters, one after the other, so that one of them is in fp32 at a time."""
        for parameter in parameters:
            assert self.rounding is not None, "only then a weight has no master"
            piece = self._piece(parameter)
            piece.step.add_(1)
            algorithm.update([piece], group["lr"], group["weight_decay"])
            self.rounding.write(piece.weight, parameter, piece.about.number, int(piece.step))

    def _has_no_master(self, parameter: nn.Parameter) -> bool:
        """Whether a 16-bit weight goes without one; those of an earlier checkpoint keep theirs."""
        if self.rounding is None or parameter.dtype is not torch.bfloat16:
            return False
        return "master" not in self.state.get(parameter, ())

    @torch.no_grad()
    def curve(self, count: float) -> None:
        """Hands the gradients of a pass with drawn targets, over `count` predictions, to those who ask for them."""
        self.gradients.collect()
        for group, homes, algorithm in zip(self.param_groups, self._homes, self.algorithms, strict=True):
            if algorithm.curvature_every:
                loose = [p for p in group["params"] if self.gradients.is_loose(p) and self.gradients.live(p)]
                pieces = [piece for home in homes for piece in self._home_pieces(home)]
                algorithm.curve(pieces + [self._piece(p) for p in loose], count)

    @property
    def curvature_every(self) -> int:
        """Steps between two estimates of the curvature; 0 if no weight needs one."""
        return max((algorithm.curvature_every for algorithm in self.algorithms), default=0)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forgets the gradients; those that lie end to end become zero whatever `set_to_none`."""
        self.gradients.clear()

    def forget(self, parameters: Iterable[nn.Parameter]) -> None:
        """Drops gradients and states of weights that rest from now on; with a next gradient they begin anew."""
        for parameter in parameters:
            self.state.pop(parameter, None)
            self.gradients.retire(parameter)

    def renew(self, parameters: Iterable[nn.Parameter]) -> None:
        """These weights begin anew: their states are those of weights that were never updated."""
        for parameter in parameters:
            self.state.pop(parameter, None)
        for states in self._states.values():
            states.forget()

    def state_bytes(self, parameter: nn.Parameter) -> int:
        """Bytes of what is kept for a parameter from step to step: its states, and the master of a 16-bit one."""
        wide = torch.promote_types(parameter.dtype, torch.float32)
        like = torch.empty(parameter.shape, dtype=wide, device="meta")
        made = self._of[id(parameter)].start(like, self._about[id(parameter)])
        master = like.nbytes if parameter.dtype != wide and not self._has_no_master(parameter) else 0
        return master + sum(value.nbytes for value in made.values())

    def updated(self) -> Iterator[tuple[nn.Parameter, "Algorithm", About]]:
        """What is updated at once: each weight, or one vector that stands for all that lie end to end."""
        for group, homes, algorithm in zip(self.param_groups, self._homes, self.algorithms, strict=True):
            whole = homes if algorithm.elementwise else []
            yield from ((nn.Parameter(home.weights_n), algorithm, About()) for home in whole)
            inside = {id(parameter) for home in whole for parameter in home.parameters}
            for parameter in group["params"]:
                if id(parameter) not in inside:
                    yield parameter, algorithm, self._about[id(parameter)]

    @torch.no_grad()
    def shown(self) -> dict[nn.Parameter, Tensor]:
        """The weights that are evaluated and kept, where they are not those that gradients are computed at."""
        if self.average is not None:
            return self.average.weights()
        found = {}
        for parameter, state in self.state.items():
            algorithm, about = self._of[id(parameter)], self._about[id(parameter)]
            assert isinstance(parameter, nn.Parameter)
            weight = self._wide(parameter)
            other = algorithm.shown(Piece(weight, weight, state, state["step"], about))
            if other is not None:
                found[parameter] = other
        return found

    def about_parts(self) -> str:
        """Which weights are whose, in a sentence; empty where one optimizer has them all."""
        counts: dict[str, list[int]] = {}
        for algorithm, group in zip(self.algorithms, self.param_groups, strict=True):
            count = counts.setdefault(type(algorithm).__name__, [0, 0])
            count[0] += len(group["params"])
            count[1] += sum(parameter.numel() for parameter in group["params"])
        parts = [f"{name} updates {n:,} weights of {size:,} numbers" for name, (n, size) in counts.items()]
        return ", ".join(parts) if len(parts) > 1 else ""

    def _home_pieces(self, home: Home) -> list[Piece]:
        live = [parameter for parameter in home.parameters if self.gradients.live(parameter)]
        if id(home) in self._states:
            return self._states[id(home)].pieces(live, lambda parameter: self._about[id(parameter)])
        return [self._piece(parameter) for parameter in live]

    def _piece(self, parameter: nn.Parameter) -> Piece:
        """A parameter on its own."""
        assert parameter.grad is not None, "collect gives every live parameter a gradient"
        if not self.state[parameter]:
            self.state[parameter] = self._new(parameter)
        state = self.state[parameter]
        weight = self._wide(parameter)
        return Piece(
            weight, parameter.grad.to(weight.dtype), state, state["step"], self._about[id(parameter)]
        )

    def _wide(self, parameter: Tensor) -> Tensor:
        """The weight, its master, or where there is none a copy, in fp32 (fp64 for fp64)."""
        master = self.state[parameter].get("master", parameter)
        return master.detach().to(torch.promote_types(master.dtype, torch.float32))

    def _new(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        """States of a parameter before its first update."""
        algorithm = self._of[id(parameter)]
        wide = torch.promote_types(parameter.dtype, torch.float32)
        state: dict[str, Tensor] = {}
        weight = parameter.detach()
        if parameter.dtype != wide:
            weight = weight.to(wide)
            if not self._has_no_master(parameter):
                weight = state["master"] = self._placed(weight)
        made = algorithm.start(weight, self._about[id(parameter)])
        state |= {name: self._placed(value) for name, value in made.items()}
        return state | {"step": torch.zeros((), device=_place(algorithm, parameter))}

    def _placed(self, value: Tensor) -> Tensor:
        return value if self.on_disk is None else self.on_disk.place(value)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the states bit for bit; torch's own would cast fp32 masters down to the weights' dtype.

        Settings such as decay stay those that this optimizer was built with.
        """
        numbered = [p for group in self.param_groups for p in group["params"]]
        self.state.clear()
        for number, saved in state_dict["state"].items():
            parameter = numbered[number]
            self.gradients.revive(parameter)
            place = _place(self._of[id(parameter)], parameter)
            self.state[parameter] = {
                name: self._placed(value.to(place if is_scalar(name, value, parameter) else parameter.device))
                for name, value in saved.items()
            }
        for states in self._states.values():
            states.bring()


def shown_weights(optimizer: torch.optim.Optimizer) -> dict[nn.Parameter, Tensor]:
    """The weights that are evaluated, saved and kept, where they are not those that are being trained."""
    return optimizer.shown() if isinstance(optimizer, Stepper) else {}


def _place(algorithm: "Algorithm", parameter: nn.Parameter) -> torch.device:
    """Where the numbers of a weight lie."""
    return parameter.device if algorithm.scalars_on_device else torch.device("cpu")


def _homes(parameters: Sequence[nn.Parameter], chosen: set[int]) -> list[Home]:
    """One home for each dtype and device among those of the chosen parameters that can have one."""
    kinds: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in parameters:
        wide = torch.promote_types(parameter.dtype, torch.float32)
        grad_dtype = parameter.grad_dtype  # pyright: ignore[reportAttributeAccessIssue]
        if id(parameter) in chosen and parameter.dtype == wide == (grad_dtype or wide):
            kinds.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    return [Home(same) for same in kinds.values()]
