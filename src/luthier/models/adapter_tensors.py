"""What an adapter consists of, by PEFT's keys: views of the model's own tensors, to be written and read into.

Shape suffixes: E experts, K inputs, M outputs, R rank.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luthier.models.adapter_shapes import BIAS, MAGNITUDE, PREFIX, expert_keys
from luthier.models.lora import (
    LoraEmbedding,
    LoraExperts,
    LoraLinear,
    WholeModule,
    adapters,
    adapters_called,
)
from luthier.models.planned_tokens import rows_key
from luthier.models.token_rows import TokenRows


@dataclass(frozen=True)
class Parts:
    """A tensor of a file, and the adapter's tensors, not copies, that it is made of: one after the other along `dim`.

    An adapter that started as something (`LoraLinear.begin`) is one of twice its rank in PEFT's format. `order` is
    PEFT's order of dimensions, and its inverse, where it is another one.
    """

    tensors: tuple[Tensor, ...]
    dim: int = 0
    order: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]] | None = None

    def whole(self) -> Tensor:
        """The tensor as the file has it."""
        found = self.tensors[0] if len(self.tensors) == 1 else torch.cat(self.tensors, self.dim)
        return found if self.order is None else self.order[0](found)

    def take(self, whole: Tensor) -> None:
        """Copies what the file has into the adapter."""
        whole = whole if self.order is None else self.order[1](whole)
        if len(self.tensors) == 1:
            self.tensors[0].copy_(whole)
            return
        sizes = [tensor.shape[self.dim] for tensor in self.tensors]
        for tensor, part in zip(self.tensors, whole.split(sizes, self.dim), strict=True):
            tensor.copy_(part)


def named_tensors(model: nn.Module, adapter: str = "") -> dict[str, Parts]:
    """The tensors of the adapter of that name by PEFT's keys. Tied weights stand under each of their names.

    Whatever is no update of a linear layer belongs to the first adapter, whose name is empty.
    """
    tensors: dict[str, Parts] = {}
    for name, module in adapters_called(model, adapter).items():
        tensors |= _of_linear(f"{PREFIX}{name}", module)
    if adapter:
        return tensors
    rows: set[int] = set()
    for name, module in adapters(model).items():
        start = f"{PREFIX}{name}"
        if isinstance(module, LoraEmbedding):
            tensors[f"{start}.lora_embedding_A"] = Parts((module.lora_embedding_A.detach(),))
            tensors[f"{start}.lora_embedding_B"] = Parts((module.lora_embedding_B.detach(),))
        elif isinstance(module, LoraExperts):
            tensors |= _of_experts(name, module)
        elif isinstance(module, TokenRows):
            if id(module.rows) not in rows:  # of those that share them, the first has them in PEFT's files
                rows.add(id(module.rows))
                tensors[PREFIX + rows_key([name])] = Parts((module.rows.detach(),))
        elif isinstance(module, WholeModule):
            weights = {part: module.base.get_parameter(part).detach() for part in module.names}
            if module.only is None:
                weights = module.base.state_dict()
            tensors.update({f"{start}.{part}": Parts((weight,)) for part, weight in weights.items()})
    return tensors


def _of_linear(start: str, module: LoraLinear) -> dict[str, Parts]:
    all_a = [part.detach() for part in (module.lora_A, module.start_A) if part is not None]
    all_b = [part.detach() for part in (module.lora_B, module.start_B) if part is not None]
    found = {
        f"{start}.lora_A.weight": Parts(tuple(all_a)),
        f"{start}.lora_B.weight": Parts(tuple(all_b), dim=1),
    }
    if module.lora_magnitude is not None:
        found[f"{start}.{MAGNITUDE}"] = Parts((module.lora_magnitude.detach(),))
    if module.lora_bias is not None:
        found[f"{start}.{BIAS}"] = Parts((module.lora_bias.detach(),))
    return found


def _of_experts(name: str, module: LoraExperts) -> dict[str, Parts]:
    """A of all experts one below the other; B with the ranks outside and the experts inside, as PEFT has it."""
    found = {}
    for tensor, start in expert_keys(name, list(module.settings)).items():
        number = len(module.lora_A[tensor])
        a_ERK, b_EMR = module.lora_A[tensor].detach(), module.lora_B[tensor].detach()
        found[f"{PREFIX}{start}.lora_A.weight"] = Parts(
            (a_ERK,), order=(lambda a: a.flatten(0, 1), lambda a, like=a_ERK: a.view(like.shape))
        )
        found[f"{PREFIX}{start}.lora_B.weight"] = Parts(
            (b_EMR,), order=(flat_b, lambda b, n=number: experts_b(b, n))
        )
    return found


def flat_b(b_EMR: Tensor) -> Tensor:
    """B as PEFT has it, [M, R * E]."""
    return b_EMR.permute(1, 2, 0).flatten(1)


def experts_b(flat: Tensor, experts: int) -> Tensor:
    """B from that, [E, M, R]."""
    return flat.view(len(flat), -1, experts).permute(2, 0, 1)
