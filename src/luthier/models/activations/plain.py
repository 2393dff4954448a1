"""Levels for layers as transformers wrote them, and what each costs, measured.

transformers' decoder layers ask two attributes of their own whether to recompute themselves
(`GradientCheckpointingLayer`): both are set on the instance, no class and no function is touched. Recomputing is
torch's non-reentrant checkpoint, which draws the same dropout again and leaves gradients as they are, to the bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from luthier.data.batch import Batch, Example, Segment, collate
from luthier.models.activations.levels import Level, Plannable
from luthier.models.activations.offload import HostStore, offloading
from luthier.models.policy import Policy
from luthier.models.quantised.embeddings import num_rows
from luthier.models.quantised.linear import QuantLinear

DOCUMENT = 32  # tokens of each of the two documents that a model is probed with


class PlainLayer:
    """A transformers layer that keeps everything or its input.

    Args:
        layer: the module; only its own two attributes are set.
        whole: bytes per token that it saves for its backward pass.
        input: bytes per token of its input.
        flops: floating-point operations of its forward pass per token.
        store: where inputs go that wait in RAM.
    """

    levels = (Level.KEEP_ALL, Level.KEEP_INPUT, Level.OFFLOAD_INPUT)

    def __init__(
        self, layer: GradientCheckpointingLayer, whole: int, input: int, flops: float, store: HostStore
    ):
        self.layer, self.flops, self.store = layer, flops, store
        self._bytes = {Level.KEEP_ALL: max(whole, input), Level.KEEP_INPUT: input, Level.OFFLOAD_INPUT: 0}
        self._level = Level.KEEP_ALL

    def bytes_per_token(self, level: Level) -> int:
        return self._bytes[level]

    def flops_per_token(self, level: Level) -> float:
        return 0.0 if level is Level.KEEP_ALL else self.flops

    @property
    def level(self) -> Level:
        return self._level

    @level.setter
    def level(self, level: Level) -> None:
        self.layer.gradient_checkpointing = level is not Level.KEEP_ALL
        self.layer._gradient_checkpointing_func = recomputing(level, self.store)  # pyright: ignore[reportArgumentType]
        self._level = level


def recomputing(level: Level, store: HostStore) -> Callable[..., Any]:
    """How a layer is called that keeps no more than its input: (function, *inputs) -> the function's result.

    Only positional inputs are kept, or sent to `store`; what else the function needs, it must hold itself.
    """
    if level is Level.OFFLOAD_INPUT:
        return partial(_from_ram, store)
    return partial(checkpoint, use_reentrant=False)


def _from_ram(store: HostStore, function: Any, *inputs: Any) -> Any:
    with offloading(store):  # around the checkpoint, which saves nothing but its inputs
        return checkpoint(function, *inputs, use_reentrant=False)


def plannable_layers(policy: Policy, store: HostStore | None = None) -> list[Plannable]:
    """The layers of the model in order: those that can be planned as they are, plain ones wrapped and measured.

    A layer can be planned if it or what answers for its `forward` is `Plannable`. Empty for a model whose layers
    cannot be recomputed. Left out are first layers that no gradient reaches, as they keep nothing.
    """
    pairs = list(_layers(policy.model))
    found = [answers for _, answers in pairs[_unreached(policy.model, [layer for layer, _ in pairs]) :]]
    plain = [layer for layer in found if isinstance(layer, GradientCheckpointingLayer)]
    costs = dict(zip(plain, measure(policy, plain), strict=True))
    store = store or HostStore()
    for layer in found:
        if hasattr(layer, "store"):
            layer.store = store  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    return [
        PlainLayer(layer, *costs[layer], flops_of(layer), store)
        if isinstance(layer, GradientCheckpointingLayer)
        else layer
        for layer in found
    ]


def _layers(module: nn.Module) -> Iterator[tuple[nn.Module, Plannable | GradientCheckpointingLayer]]:
    """The outermost layers whose level can be set, each with what its level is set on."""
    for child in module.children():
        answers = vars(child).get("forward", child)
        if isinstance(answers, Plannable):
            yield child, answers
        elif isinstance(child, GradientCheckpointingLayer):
            yield child, child
        else:
            yield from _layers(child)


def _unreached(model: nn.Module, layers: Sequence[nn.Module]) -> int:
    """How many of the first layers have nothing trained in them nor before them, in the order of the weights."""
    of_layers = [set(map(id, layer.parameters())) for layer in layers]
    inside = set().union(*of_layers)
    for parameter in model.parameters():
        if parameter.requires_grad:
            if id(parameter) not in inside:
                return 0
            return next(number for number, own in enumerate(of_layers) if id(parameter) in own)
    return 0


def flops_of(layer: nn.Module) -> float:
    """Floating-point operations per token of the layer's matrices; of stacked experts, one of each."""
    matrices = [p for p in layer.parameters() if p.dim() > 1]
    stored = sum(2 * m.in_features * m.out_features for m in layer.modules() if isinstance(m, QuantLinear))
    return stored + float(sum(2 * (p.numel() // p.shape[0] if p.dim() == 3 else p.numel()) for p in matrices))


class _Counter:
    """Counts what the layers save for the backward pass, storage by storage, none twice.

    Args:
        layers: whose savings are counted, each by its own.
        known: storages that are there anyway: weights and buffers.
    """

    def __init__(self, layers: Sequence[nn.Module], known: set[int]):
        self.layers, self.known = list(layers), known
        self.saved = dict.fromkeys(self.layers, 0)
        self.inputs = dict.fromkeys(self.layers, 0)
        self._inside: list[tuple[nn.Module, saved_tensors_hooks]] = []
        self._alive: list[Tensor] = []  # keeps what was counted, so that its address stays its own

    @contextmanager
    def counting(self) -> Iterator[None]:
        """While it holds, every pass through a layer counts."""
        with ExitStack() as stack:
            stack.callback(self._leave_all)
            for layer in self.layers:
                stack.callback(layer.register_forward_pre_hook(self._enter, with_kwargs=True).remove)
                stack.callback(layer.register_forward_hook(self._leave).remove)
            yield

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        hidden = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        self.inputs[module] += hidden.numel() * hidden.element_size()
        hooks = saved_tensors_hooks(self._pack, _never_asked)
        self._inside.append((module, hooks))
        hooks.__enter__()

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._inside.pop()[1].__exit__(None, None, None)

    def _leave_all(self) -> None:
        """Leaves the layers that a failure was in the midst of: else their hooks would hold for whatever comes next."""
        while self._inside:
            self._leave(self._inside[-1][0], None, None)

    def _pack(self, tensor: Tensor) -> None:
        for part in _dense_parts(tensor.detach()):
            storage = part.untyped_storage()
            if storage.data_ptr() not in self.known:
                self.known.add(storage.data_ptr())
                self._alive.append(part)
                self.saved[self._inside[-1][0]] += storage.nbytes()


def _dense_parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors with a storage of their own that a sparse one consists of; a dense one itself."""
    if tensor.layout == torch.strided:
        return (tensor,)
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    return tensor.ccol_indices(), tensor.row_indices(), tensor.values()


def measure(policy: Policy, layers: Sequence[nn.Module]) -> list[tuple[int, int]]:
    """Bytes per token that each layer saves, and those of its input, from one forward pass over few tokens.

    Runs as training does, with dropout; the random numbers that it draws are put back. What is counted is what
    autograd is given to save; where layers share a tensor, the first one pays.
    """
    if not layers:
        return []
    there = [*policy.parameters(), *policy.buffers()]
    known = {part.untyped_storage().data_ptr() for tensor in there for part in _dense_parts(tensor)}
    counter = _Counter(layers, known)
    device = there[0].device
    embedding: Any = policy.model.get_input_embeddings()
    batch = _probe(num_rows(embedding)).to(device)
    was_training = {module: module.training for module in policy.modules()}
    try:
        policy.train()
        cuda = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(cuda), torch.enable_grad(), counter.counting():
            policy.sketch(batch)
    finally:
        for module, training in was_training.items():
            module.training = training
    num = batch.num_tokens
    return [(counter.saved[layer] // num, counter.inputs[layer] // num) for layer in layers]


def _never_asked(kept: None) -> Tensor:
    raise AssertionError("the probe has no backward pass")


def _probe(vocabulary: int) -> Batch:
    """Two documents of random tokens, with one prediction each: the head is not what is measured."""
    draw = np.random.default_rng(0)
    weights = np.zeros(DOCUMENT, np.float32)
    weights[-1] = 1
    ids = [draw.integers(0, vocabulary, DOCUMENT).astype(np.int32) for _ in range(2)]
    return collate([Example((Segment(each, weights),)) for each in ids])
