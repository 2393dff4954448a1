"""What a layer keeps changes memory, never a gradient: not in the last bit."""

from collections.abc import Callable, Sequence
from itertools import product

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from transformers import PreTrainedModel

from luthier.models.activations.assemble import tokens_in_flight
from luthier.models.activations.levels import Level, Plannable
from luthier.models.activations.offload import HostStore, offloading
from luthier.models.activations.plain import plannable_layers
from luthier.models.policy import Policy
from luthier.training.loop import Trainer
from tiny_models import FAMILIES, OTHERS, build, tiny_gpt2, tiny_llama, tiny_qwen3
from training_parts import chat_rows, make_trainer

ALL, INPUT, AWAY = Level.KEEP_ALL, Level.KEEP_INPUT, Level.OFFLOAD_INPUT


def gradients(trainer: Trainer, layers: Sequence[Plannable], levels: Sequence[Level]) -> list[Tensor]:
    """The gradients of two micro-batches under these levels, dropout drawn from one seed."""
    for layer, level in zip(layers, levels, strict=True):
        layer.level = level
    torch.manual_seed(3)
    trainer.policy.train()
    for parameter in trainer.parameters:
        parameter.grad = None
    for batch in trainer.source.step(0)[:2]:
        trainer.learner.loss(batch)[0].backward()
    return [p.grad.clone() for p in trainer.parameters if p.grad is not None]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) > 0 and all(map(torch.equal, first, second))


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_every_mix_of_levels_gives_the_same_gradients(family: str) -> None:
    trainer = make_trainer(model={**FAMILIES, **OTHERS}[family](), dropout=0.2)
    layers = plannable_layers(trainer.policy)
    assert len(layers) == 2
    expected = gradients(trainer, layers, (ALL, ALL))
    for levels in product((ALL, INPUT, AWAY), repeat=2):
        assert same(gradients(trainer, layers, levels), expected), levels


@pytest.mark.parametrize("make", [tiny_llama, tiny_qwen3, tiny_gpt2])
def test_so_it_does_when_all_weights_are_tuned(make: Callable[[], PreTrainedModel]) -> None:
    trainer = make_trainer(model=make(), lora=False)
    layers = plannable_layers(trainer.policy)
    expected = gradients(trainer, layers, (ALL, ALL))
    for levels in product((ALL, INPUT, AWAY), repeat=2):
        assert same(gradients(trainer, layers, levels), expected), levels


def test_dropout_of_the_model_itself_is_drawn_again_as_it_was() -> None:
    trainer = make_trainer(model=build("llama", attention_dropout=0.3), dropout=0.3)
    layers = plannable_layers(trainer.policy)
    expected = gradients(trainer, layers, (ALL, ALL))
    assert same(gradients(trainer, layers, (INPUT, AWAY)), expected)
    trainer.policy.eval()
    trainer.learner.loss(trainer.source.step(0)[0])[0].backward()  # so dropout did have a hand in it
    assert not same([p.grad for p in trainer.parameters if p.grad is not None], expected)


def kept_bytes(trainer: Trainer) -> int:
    """Bytes that autograd holds between the forward and the backward pass of a micro-batch."""
    there = [*trainer.policy.parameters(), *trainer.policy.buffers()]
    known = {tensor.untyped_storage().data_ptr() for tensor in there}
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()

    trainer.policy.train()
    batch = trainer.source.step(0)[0]
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = trainer.learner.loss(batch)[0]
    total = sum(sizes.values())
    del loss
    return total


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_memory_falls_by_what_the_probe_says(family: str) -> None:
    make = {**FAMILIES, **OTHERS}[family]
    rows = chat_rows(40, longest=60)
    trainer = make_trainer(rows, model=make(), tokens_per_step=512, micro_tokens=512)
    layers = plannable_layers(trainer.policy)
    num_tokens = trainer.source.step(0)[0].num_tokens
    assert num_tokens > 200
    before = kept_bytes(trainer)
    for layer in layers:
        layer.level = INPUT
    freed = before - kept_bytes(trainer)
    said = sum(layer.bytes_per_token(ALL) - layer.bytes_per_token(INPUT) for layer in layers)
    assert freed / num_tokens == pytest.approx(said, rel=0.05)


def test_the_probe_leaves_no_trace() -> None:
    trainer = make_trainer(dropout=0.5)
    trainer.policy.eval()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    layers = plannable_layers(trainer.policy)
    assert torch.equal(torch.rand(3), expected)
    assert not any(module.training for module in trainer.policy.modules())
    assert all(p.grad is None or not p.grad.any() for p in trainer.parameters)
    assert all(layer.level is ALL for layer in layers)
    for module in trainer.policy.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_only_the_layer_itself_is_told() -> None:
    trainer = make_trainer()
    first, second = plannable_layers(trainer.policy)
    first.level = INPUT
    modules = [layer.layer for layer in (first, second)]  # pyright: ignore[reportAttributeAccessIssue]
    assert [module.gradient_checkpointing for module in modules] == [True, False]
    assert not type(modules[0]).gradient_checkpointing
    first.level = ALL
    assert not modules[0].gradient_checkpointing


class OwnLayer:
    """Answers for a layer's forward, as a fused layer does, and can be planned."""

    levels = (ALL, INPUT)

    def __init__(self, forward: Callable[..., object]):
        self.forward, self.level = forward, ALL

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.forward(*args, **kwargs)

    def bytes_per_token(self, level: Level) -> int:
        return 7

    def flops_per_token(self, level: Level) -> float:
        return 1.0


def test_what_answers_for_a_layer_is_planned_in_its_place() -> None:
    trainer = make_trainer()
    second = trainer.policy.model.get_submodule("model.layers.1")
    own = OwnLayer(second.forward)
    second.forward = own  # pyright: ignore[reportAttributeAccessIssue]
    layers = plannable_layers(trainer.policy)
    assert layers[1] is own
    assert layers[0].bytes_per_token(ALL) > layers[0].bytes_per_token(INPUT) == 32 * 4


def test_a_model_without_layers_that_can_be_recomputed_has_none_to_plan() -> None:
    trainer = make_trainer()
    trainer.policy.model = torch.nn.Module()  # pyright: ignore[reportAttributeAccessIssue]
    assert plannable_layers(trainer.policy) == []


def chain(x: Tensor, store: HostStore, num: int) -> Tensor:
    for _ in range(num):
        with offloading(store):
            x = x * x.sin()
    return x


def test_what_waits_in_ram_comes_back_as_it_was() -> None:
    start = torch.randn(5, 3, dtype=torch.float64).requires_grad_()
    plain = start.detach().clone().requires_grad_()
    store = HostStore()
    for _ in range(2):  # the second time through buffers of the first
        chain(start, store, 4).sum().backward()
    x = plain
    for _ in range(4):
        x = x * x.sin()
    (2 * x.sum()).backward()
    assert start.grad is not None and plain.grad is not None
    torch.testing.assert_close(start.grad, plain.grad, rtol=1e-14, atol=0)


def test_inputs_may_be_wanted_in_any_order() -> None:
    store = HostStore()
    for _ in range(3):
        parked = [store.put(torch.full((2,), float(i))) for i in range(4)]
        assert [store.take(parked[i]).tolist()[0] for i in (1, 3, 2, 0)] == [1.0, 3.0, 2.0, 0.0]


def test_buffers_in_ram_are_used_again() -> None:
    store = HostStore()
    parked = [store.put(torch.full((4,), float(i))) for i in range(3)]
    first = {id(each.host) for each in parked}
    assert [store.take(each).tolist()[0] for each in reversed(parked)] == [2.0, 1.0, 0.0]
    again = [store.put(torch.full((4,), float(i))) for i in range(3)]
    assert {id(each.host) for each in again} == first
    assert [store.take(each).tolist()[0] for each in reversed(again)] == [2.0, 1.0, 0.0]


def test_the_one_below_is_on_its_way_when_one_is_taken() -> None:
    store = HostStore()
    below, above = store.put(torch.zeros(2)), store.put(torch.ones(2))
    store.take(above)
    assert below.back is not None
    with pytest.raises(AssertionError, match="another tensor"):
        store.take(above)


def test_tokens_in_flight_count_a_shared_prompt_for_every_answer_unless_packed() -> None:
    from luthier.models.tripwire import probe

    model = tiny_llama()
    batch = probe(model)  # 9 + (6 + 4 + 3) + 5 tokens, the 6 shared by two answers
    assert tokens_in_flight(Policy(model, "packed"), batch) == 27
    assert tokens_in_flight(Policy(model, "rows"), batch) == 33
