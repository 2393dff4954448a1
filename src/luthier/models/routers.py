"""Losses on the routers of a mixture of experts, over a whole step however it is cut.

    balance    E · Σ_e f_e P_e       Switch Transformers, arXiv:2101.03961, eq. 4-6, as transformers computes it
    z          mean of logz²         ST-MoE, arXiv:2202.08906, eq. 5; logz is the log-normaliser of a router's logits

f_e is the share of tokens that expert e gets (k of them a token), P_e the mean of its probability; means are over all
tokens of the step and all routers. The balance is no sum over tokens: it is a product of two means over the step. But
f has no gradient, so with f known it is one: each token adds f · p. Here f is that of the step *before* (as the
biases of 2408.15664 follow the load of the step before), on all ranks. So neither micro-batches nor packing, shared
beginnings, order or ranks change the gradient, and no token is computed twice for it. Others take f and P of each
micro-batch, whose product depends on memory settings. In the first step of a run f is not known and is taken to be
even, which gives no gradient. The value that is told has f and P of the step itself.

The gradient is added to that of each router's logits in the backward pass, where tokens are counted too, so layers
that are run again there count once.

Shape suffixes: T tokens that go through a router at once, E experts.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.data.batch import Batch
from luthier.errors import ConfigError


class Routers:
    """Adds the losses of a model's routers to gradients.

    Args:
        routers: each with the place of the logits in what it returns.
        num_experts: E.
        chosen: k, the experts of a token.
        balance: weight of the balance.
        z: weight of the z-loss.
    """

    def __init__(
        self,
        routers: Sequence[tuple[nn.Module, int]],
        num_experts: int,
        chosen: int,
        *,
        balance: float = 0.0,
        z: float = 0.0,
    ):
        self.number, self.num_experts, self.chosen = len(routers), num_experts, chosen
        self.balance, self.z = balance, z
        self.load_E: Tensor | None = None
        """f of the step before, on the CPU in fp64; None: not known. Checkpoints keep it."""
        self._weight_T: Tensor | None = None
        self._rows = 1.0
        self._sums: Tensor | None = None
        for router, place in routers:
            router.register_forward_hook(self._watch(place))

    def begin(self, num_tokens: float) -> None:
        """Told before each step how many tokens it has on all ranks, with nothing shared and no padding."""
        self._rows = max(1.0, num_tokens) * self.number
        self.forget()

    def forget(self) -> None:
        """Forgets what was counted in the step so far."""
        self._sums = None

    def reads(self, batch: Batch, index_P: Tensor | None = None) -> None:
        """Told before the model reads a stream: all of it at once, or one document, whose tokens all count once."""
        self._weight_T = multiplicity(batch) if index_P is None else None

    def end(self, add_up: Callable[[Sequence[float]], list[float]]) -> dict[str, float]:
        """Both losses of the step without their weights, under TRL's name if it has one.

        `add_up` sums numbers over all ranks, each of which must call this.
        """
        size = 2 * self.num_experts + 1
        mine = [0.0] * size if self._sums is None else self._sums.tolist()
        *both, squares = (value / self._rows for value in add_up(mine))
        load, probability = both[: self.num_experts], both[self.num_experts :]
        self.load_E = torch.tensor(load, dtype=torch.float64)
        balance = self.num_experts * sum(f * p for f, p in zip(load, probability, strict=True))
        return {"aux_loss": balance, "router_z_loss": squares}

    def _watch(self, place: int) -> Callable[..., None]:
        def seen(module: nn.Module, inputs: Any, output: Any) -> None:
            logits = output[place] if isinstance(output, tuple) else output
            if logits.requires_grad:
                weight_T, kept = self._weight_T, logits.detach()
                logits.register_hook(lambda gradient: self._add(gradient, kept, weight_T))

        return seen

    def _add(self, gradient: Tensor, logits: Tensor, weight_T: Tensor | None) -> Tensor:
        """The gradient of a router's logits [T, E] with that of the losses; counts the tokens."""
        logits_TE = logits.reshape(-1, self.num_experts).float()
        logz_T, p_TE = logits_TE.logsumexp(-1), logits_TE.softmax(-1)
        weight_T = torch.ones_like(logz_T) if weight_T is None else weight_T.to(logz_T)
        self._count(p_TE, logz_T, weight_T)
        scale_TE = torch.zeros_like(p_TE)
        if self.load_E is not None:
            load_E = self.load_E.to(p_TE)
            scale_TE = self.balance * self.num_experts * (load_E - (p_TE @ load_E)[:, None])
        scale_TE = (scale_TE + 2 * self.z * logz_T[:, None]) * (weight_T / self._rows)[:, None]
        return gradient + (p_TE * scale_TE).reshape(gradient.shape).to(gradient.dtype)

    def _count(self, p_TE: Tensor, logz_T: Tensor, weight_T: Tensor) -> None:
        chosen_TK = p_TE.topk(self.chosen, -1).indices
        load_E = p_TE.new_zeros(self.num_experts, dtype=torch.float64)
        load_E.index_add_(0, chosen_TK.flatten(), weight_T.double().repeat_interleave(self.chosen))
        found = [load_E, weight_T.double() @ p_TE.double(), (weight_T.double() @ logz_T.double() ** 2)[None]]
        total = torch.cat(found)
        self._sums = total if self._sums is None else self._sums + total


def multiplicity(batch: Batch) -> Tensor:
    """How many of the batch's documents each token of the stream stands in, [T]; padding is in none.

    Reads no number from the device.
    """
    real_Q = batch.columns["row"] >= 0
    places = [(segment, number) for number, path in enumerate(batch.paths()) for segment in path]
    segment_M, sequence_M = torch.tensor(places).T.to(real_Q.device)
    times_S = torch.zeros(len(batch.parent_S), device=real_Q.device)
    times_S = times_S.index_add(0, segment_M, real_Q[sequence_M].float())
    size_S = batch.starts_S1.diff().to(real_Q.device)
    return times_S.repeat_interleave(size_S, output_size=batch.tokens_T.numel())


def find_routers(model: PreTrainedModel) -> list[tuple[nn.Module, int]]:
    """The model's routers in the order of its layers, with the place of the logits in what they return.

    They are those whose logits transformers records for its own balance loss; none, if it has no such loss.
    """
    if getattr(model.config.get_text_config(), "router_aux_loss_coef", None) is None:
        return []
    found: dict[int, tuple[nn.Module, int]] = {}
    for owner in model.modules():
        recorder = (getattr(owner, "_can_record_outputs", None) or {}).get("router_logits")
        for one in recorder if isinstance(recorder, list) else [recorder]:
            kind, place = getattr(one, "target_class", one), getattr(one, "index", 0)
            if isinstance(kind, type):
                found |= {id(m): (m, place) for m in owner.modules() if isinstance(m, kind)}
    return list(found.values())


def watch_routers(model: PreTrainedModel, balance: float | None, z: float) -> Routers | None:
    """The losses of the model's routers; None: it has no routers, or no loss of theirs is asked for.

    `balance` None: as the model's configuration says, whose `output_router_logits` asks for it.

    Raises:
        ConfigError: a loss is asked for, and the model has no routers.
    """
    settings: Any = model.config.get_text_config()
    routers = find_routers(model)
    if not routers and (balance or z):
        raise ConfigError(
            f"model.router_aux_weight or model.router_z_weight is set, but {type(model).__name__} has no routers "
            "for which transformers knows a balance loss, so there is nothing to balance. Leave both out."
        )
    if balance is None:
        wanted = routers and getattr(settings, "output_router_logits", False)
        balance = float(settings.router_aux_loss_coef) if wanted else 0.0
    if not (balance or z):
        return None
    names = ("num_experts", "num_local_experts", "n_routed_experts")
    number = next(n for n in (getattr(settings, name, None) for name in names) if n)
    return Routers(routers, int(number), int(settings.num_experts_per_tok), balance=balance, z=z)
