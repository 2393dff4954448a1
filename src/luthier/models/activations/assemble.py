"""From a policy and its optimizer to a planner of its activations."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.kernels.head import most_rows
from luthier.models.activations.gauge import Gauge, GpuGauge, HostGauge
from luthier.models.activations.offload import HostStore
from luthier.models.activations.plain import plannable_layers
from luthier.models.activations.planner import ActivationPlanner, Demand, Mode
from luthier.models.policy import Policy
from luthier.optim.stepper import Stepper

GIB = 2**30
HOST_SHARE = 0.6  # others live on this machine too, and a step must not push their pages out
GPU_SHARE = 0.92  # the rest is for what the allocator cannot fill between blocks


def plan_activations(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    *,
    mode: Mode = "auto",
    limit: float | None = None,
    processes: int = 1,
    micro_tokens: int | None = None,
    at_a_time: Sequence[torch.nn.Parameter] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> ActivationPlanner:
    """The planner for training this policy with this optimizer, on the device where its weights are.

    Args:
        mode: `memory.activations`.
        limit: `memory.limit`, in GiB.
        processes: training processes on this machine.
        micro_tokens: most tokens in a micro-batch; bounds what the head needs.
        at_a_time: the weights that have gradients and states at a time, if fewer than are trained in all.
        tell: gets a line whenever the plan changes.
    """
    trained = [p for p in policy.parameters() if p.requires_grad]
    device = next(policy.parameters()).device
    on_gpu = device.type == "cuda"
    most = None if limit is None else int(limit * GIB)
    gauge: Gauge = GpuGauge(device, most) if on_gpu else HostGauge(most, processes)
    store = HostStore()
    return ActivationPlanner(
        plannable_layers(policy, store),
        gauge,
        mode=mode,
        share=GPU_SHARE if on_gpu else HOST_SHARE,
        demand=Demand(
            _head_bytes(policy, micro_tokens),
            _training_bytes(trained if at_a_time is None else at_a_time, optimizer),
            lambda: _present_bytes(trained, optimizer),
        ),
        offload=on_gpu,
        store=store,
        tell=tell,
    )


def tokens_in_flight(policy: Policy, batch: Batch) -> int:
    """Tokens that go through the layers for this batch: without packing, a shared prompt does so for every answer."""
    if policy.layout == "packed":
        return batch.tokens_T.numel()  # padding goes through the layers, too
    starts = batch.starts_S1.tolist()
    return sum(starts[s + 1] - starts[s] for path in batch.paths() for s in path)


def _head_bytes(policy: Policy, micro_tokens: int | None) -> int:
    """A chunk of logits and what its gradient needs besides; where the head is trained, its weights' gradient as it is
    added up in fp32, with one chunk's share of it."""
    first = next(policy.parameters())
    vocabulary = policy.model.config.get_text_config().vocab_size
    chunk = most_rows(first.device, first.dtype, vocabulary) * vocabulary * first.element_size()
    if micro_tokens is not None:
        chunk = min(chunk, 4 * micro_tokens * vocabulary)
    head = policy.model.get_output_embeddings()
    trained = [p for p in head.parameters() if p.requires_grad] if isinstance(head, torch.nn.Module) else []
    own = sum(p.numel() * (4 + p.element_size()) for p in trained)
    return 2 * chunk + own


def _training_bytes(parameters: Sequence[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """What comes with trained weights: gradients in fp32, of all or of the largest alone where updates come within the
    backward pass, and what the optimizer keeps for them."""
    if isinstance(optimizer, Stepper):
        gradients = [4 * p.numel() for p in parameters]
        most = max(gradients, default=0) if optimizer.in_backward else sum(gradients)
        return most + sum(map(optimizer.state_bytes, parameters))
    return sum(p.numel() * (12 if p.element_size() >= 4 else 16) for p in parameters)


def _present_bytes(trained: list[torch.nn.Parameter], optimizer: torch.optim.Optimizer) -> int:
    """Gradients and optimizer states that are there now. What shares memory counts once."""
    tensors = [p.grad for p in trained if p.grad is not None]
    tensors += [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    own = {p.untyped_storage().data_ptr() for p in trained}  # a master may be the weight itself
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return sum(size for address, size in sizes.items() if address not in own)
