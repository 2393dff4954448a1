"""What every optimizer is: fresh states of a weight, and one update of weights that have them.

An optimizer is one file with one `@settings` class, whose fields are its configuration. It sees weights in fp32,
their gradients summed over micro-batches and ranks and clipped, and its own states: plain tensors by name, which
checkpoints keep as they are. All else is the `Stepper`'s: masters of 16-bit weights, adapters end to end, groups
with settings of their own, weights without a gradient, saving and resuming.

The same gradients must give the same weights on every rank and after a resume, so whatever is drawn at random is
drawn by a generator that is seeded with the weight's number and its count of steps.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

from torch import Tensor, nn

from luthier.optim.groups import Rule, param_groups
from luthier.optim.pieces import About, Piece
from luthier.optim.stepper import Stepper


class Algorithm:
    """The interface of an optimizer. Fields of a subclass are its settings."""

    elementwise: ClassVar[bool] = False
    """Whether each element of a weight is updated by its own gradient and states alone, which have its shape or are
    one number for all. Adapters then lie end to end and are updated as one vector; states change in place."""

    scalars_on_device: ClassVar[bool] = False
    """Whether counts of steps lie where the weights are, for kernels that read them there; otherwise on the CPU."""

    replaces_schedule: ClassVar[bool] = False
    """Whether it stands in for a falling learning rate, so that only `schedule: constant` makes sense with it."""

    curvature_every: int = 0
    """Steps between two estimates of the curvature, which `curve` takes in; 0: it needs none."""

    weight_decay: float
    """Share of a weight, times the learning rate, taken off each step."""

    def takes(self, parameter: nn.Parameter, about: About) -> bool:
        """Whether it updates this weight; `rest` updates those that it does not."""
        return True

    def rest(self) -> "Algorithm":
        """The optimizer of the weights that it does not take."""
        raise NotImplementedError

    def start(self, weight: Tensor, about: About) -> dict[str, Tensor]:
        """States of a weight before its first update: tensors of any shape by name; one without dimensions is a
        number for the whole weight. Must work on the device `meta`, where only shapes are asked for.

        `weight` is in fp32 (fp64 for fp64).
        """
        raise NotImplementedError

    def update(self, pieces: Sequence[Piece], lr: float, weight_decay: float) -> None:
        """Changes the weights of all pieces, and their states."""
        raise NotImplementedError

    def curve(self, pieces: Sequence[Piece], count: float) -> None:
        """Takes in an estimate of the curvature: the gradients are those of the mean loss over `count` predictions with
        targets drawn from the model itself. Weights stay as they are."""
        raise NotImplementedError

    def shown(self, piece: Piece) -> Tensor | None:
        """The weights that are evaluated and kept, if they are not those that gradients are computed at. The piece
        has no gradient of its own."""
        return None

    def build(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        rules: Sequence[Rule] = (),
        about: Mapping[int, About] | None = None,
    ) -> Stepper:
        """The optimizer over these parameters: matrices, vectors without decay, then those that a rule gives
        settings of their own; each of them in two where this algorithm does not take all.

        Adapters (`lora_A`, `lora_B`) lie end to end from then on. Whole weights stay where they are: they are
        few and large, so there a flat buffer is no faster (69 against 71 ms), and it would be one more copy.

        Args:
            lr: peak learning rate.
            about: what is known of weights, by `id`; absent: their names and numbers.
        """
        named = list(named_parameters)
        known = {id(p): About(name, number) for number, (name, p) in enumerate(named)} | dict(about or {})
        groups, algorithms = [], []
        for group in param_groups(named, self.weight_decay, rules):
            taken = [p for p in group["params"] if self.takes(p, known[id(p)])]
            others = [p for p in group["params"] if not self.takes(p, known[id(p)])]
            for algorithm, chosen in ((self, taken), (self.rest() if others else self, others)):
                if chosen:
                    groups.append(group | {"params": chosen})
                    algorithms.append(algorithm)
        adapters = [p for name, p in named if name.rpartition(".")[2].startswith("lora_")]
        return Stepper(groups, algorithms, lr, known, end_to_end=adapters)
