"""Fused decoder layers give the plain layers' numbers, forward and backward, and hand on what they cannot do."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fused_parts import DEEPSEEK, FAMILIES, adapted, forest, segment
from luthier.data.batch import Batch, Example, collate
from luthier.models.activations.levels import Level
from luthier.models.fused.check import summary
from luthier.models.fused.fuse import fuse
from luthier.models.lora import apply_lora, disable_adapters, merge_adapters
from luthier.models.policy import Policy
from luthier.models.tripwire import choose_policy
from tiny_models import build


def numbers(policy: Policy, batch: Batch | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probabilities and all gradients of a weighted sum of them."""
    policy.zero_grad()
    logp_N = policy(batch or forest())
    (logp_N * torch.linspace(0.5, 1.5, len(logp_N))).sum().backward()
    return logp_N.detach(), {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


def assert_same(
    mine: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]], rtol: float
) -> None:
    torch.testing.assert_close(mine[0], theirs[0], rtol=rtol, atol=rtol)
    assert mine[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        assert (mine[1][name] - gradient).norm() <= rtol * gradient.norm(), name


@pytest.mark.parametrize("tuned", ["adapters", "all weights"])
@pytest.mark.parametrize("family", FAMILIES)
def test_fused_is_plain(family: str, tuned: str) -> None:
    model = FAMILIES[family]()
    if tuned == "adapters":
        adapted(model)
    else:
        model.requires_grad_(True)
    policy = Policy(model)
    plain = numbers(policy)
    fusion = fuse(model)
    assert len(fusion.layers) == model.config.num_hidden_layers, fusion.reasons
    for recompute in (False, True):
        for layer in fusion.layers:
            for half in layer.halves:
                half.recompute = recompute
        assert_same(numbers(policy), plain, 1e-5)
    with torch.no_grad():
        torch.testing.assert_close(policy(forest()), plain[0], rtol=1e-5, atol=1e-5)
    fusion.release()
    assert_same(numbers(policy), plain, 0)


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2", "qwen3", "mixtral"])
def test_levels_change_no_bit(family: str) -> None:
    model = adapted(FAMILIES[family]())
    policy, fusion = Policy(model), fuse(model)
    kept = numbers(policy)
    for level in (Level.KEEP_ATTENTION, Level.KEEP_INPUT, Level.OFFLOAD_INPUT):
        for layer in fusion.layers:
            layer.level = level
        assert_same(numbers(policy), kept, 0)
    fusion.layers[0].level = Level.KEEP_ALL
    assert_same(numbers(policy), kept, 0)


@pytest.mark.parametrize("family", ["llama", "gemma2", "olmo2", "qwen3", "phi3"])
@pytest.mark.parametrize("level", [Level.KEEP_ALL, Level.KEEP_ATTENTION, Level.KEEP_INPUT])
def test_a_layer_keeps_what_it_says(family: str, level: Level) -> None:
    model = adapted(FAMILIES[family]())
    policy, fusion = Policy(model), fuse(model)
    batch = collate([Example((segment(64),)), Example((segment(40),))])
    for layer in fusion.layers:
        layer.level = level
    weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    inner = model.model.layers
    entries = [layer.register_forward_pre_hook(lambda *_: hooks.__enter__()) for layer in inner]
    exits = [layer.register_forward_hook(lambda *_: hooks.__exit__(None, None, None)) for layer in inner]
    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    logp_N = policy(batch)
    for handle in (*entries, *exits):
        handle.remove()
    said = sum(layer.bytes_per_token(level) for layer in fusion.layers) * batch.num_tokens
    assert 0.9 * said <= sum(saved.values()) <= 1.15 * said
    del logp_N


@pytest.mark.parametrize("family", ["llama with biases", "gemma3", "olmo2", "phi3"])
def test_low_precision_is_no_worse_than_plain(family: str) -> None:
    model = adapted(FAMILIES[family]())
    right = numbers(Policy(copy.deepcopy(model).double()))
    for name, parameter in model.named_parameters():
        if "lora" not in name:
            parameter.data = parameter.data.bfloat16()
    policy = Policy(model)

    def error(found: tuple[Tensor, dict[str, Tensor]]) -> float:
        return sum(float((found[1][n] - g).norm() ** 2) for n, g in right[1].items()) ** 0.5

    plain = error(numbers(policy))
    assert fuse(model).layers
    assert error(numbers(policy)) <= 2 * plain


def test_packed_is_one_document_at_a_time() -> None:
    model = adapted(FAMILIES["qwen3"]())
    policy = Policy(model)
    assert fuse(model).layers
    documents = [Example((segment(n),)) for n in (9, 1, 5, 17)]
    together = numbers(policy, collate(documents))[1]
    policy.zero_grad()
    weights = torch.linspace(0.5, 1.5, sum(len(d) - 1 for d in documents)).split(
        [len(d) - 1 for d in documents]
    )
    for document, weight_N in zip(documents, weights, strict=True):
        (policy(collate([document])) * weight_N).sum().backward()
    alone = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
    for name, gradient in alone.items():
        assert (together[name] - gradient).norm() <= 2e-6 * gradient.norm(), name


@pytest.mark.parametrize("family", ["qwen3 with experts", "deepseek_v3"])
def test_experts_train_packed_with_the_gradients_of_one_document_at_a_time(family: str) -> None:
    model = FAMILIES[family]() if family in FAMILIES else build(family, **DEEPSEEK)
    policy = choose_policy(adapted(model)).policy
    assert policy.layout == "packed" and model.config._experts_implementation == "grouped_mm"
    fuse(model)
    documents = [Example((segment(n),)) for n in (9, 5, 17)]
    together = numbers(policy, collate(documents))[1]
    policy.zero_grad()
    weights = torch.linspace(0.5, 1.5, sum(len(d) - 1 for d in documents)).split(
        [len(d) - 1 for d in documents]
    )
    for document, weight_N in zip(documents, weights, strict=True):
        (policy(collate([document])) * weight_N).sum().backward()
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            assert (together[name] - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name


def test_two_passes_may_be_open_at_once() -> None:
    model = adapted(FAMILIES["llama"]())
    policy = Policy(model)
    one, two = collate([Example((segment(9),))]), collate([Example((segment(12),))])
    separately = [numbers(policy, one)[1], numbers(policy, two)[1]]
    assert fuse(model).layers
    policy.zero_grad()
    losses = [(logp := policy(batch)) @ torch.linspace(0.5, 1.5, len(logp)) for batch in (one, two)]
    sum(losses).backward()  # pyright: ignore[reportAttributeAccessIssue]
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                parameter.grad, separately[0][name] + separately[1][name], rtol=1e-4, atol=1e-5
            )


def generate(model: Any, ids: Tensor) -> Tensor:
    return model.generate(ids, max_new_tokens=5)


def test_caches_padding_and_switched_off_adapters_go_the_plain_way() -> None:
    model = adapted(FAMILIES["llama"]())
    untouched = copy.deepcopy(model)
    policy = Policy(model)
    assert fuse(model).layers
    ids = torch.arange(3, 11)[None]
    for run in (model, untouched):
        run.set_attn_implementation("sdpa")
    torch.testing.assert_close(
        generate(model, ids),
        generate(untouched, ids),
    )
    padded = {"input_ids": ids.expand(2, -1), "attention_mask": torch.tensor([[1] * 8, [0] * 3 + [1] * 5])}
    torch.testing.assert_close(model(**padded).logits, untouched(**padded).logits)
    policy, other = Policy(model), Policy(untouched)
    with disable_adapters(model), disable_adapters(untouched):
        torch.testing.assert_close(policy(forest()), other(forest()))


def test_merging_and_copying_still_work() -> None:
    model = adapted(FAMILIES["llama"]())
    policy = Policy(model)
    expected = policy(forest()).detach()
    fuse(model)
    twin = copy.deepcopy(model)
    torch.testing.assert_close(Policy(twin)(forest()), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    torch.testing.assert_close(Policy(twin)(forest()), expected, rtol=1e-5, atol=1e-5)
    merge_adapters(twin)
    torch.testing.assert_close(Policy(twin)(forest()), expected, rtol=1e-5, atol=1e-5)


def reason(model: nn.Module) -> str:
    fusion = fuse(model)
    assert not fusion.layers
    return summary(fusion)


def test_what_cannot_be_fused_says_why() -> None:
    several = adapted(FAMILIES["llama"]())
    for layer in several.model.layers:
        layer.self_attn.q_proj.dropout = 0.1
    assert "adapters that read the same input have several dropouts (2)" in reason(several)
    assert "no file in models/families describes this architecture" in reason(build("cohere"))
    assert "activation relu (2)" in reason(build("llama", hidden_act="relu"))
    hooked = FAMILIES["llama"]()
    for layer in hooked.model.layers:
        layer.mlp.up_proj.register_forward_hook(lambda *_: None)
    assert "mlp.up_proj has hooks (2)" in reason(hooked)
    mixed = FAMILIES["llama"]()
    apply_lora(mixed, rank=2, target=["q_proj"], modules_to_save=["k_proj"])
    assert "self_attn.k_proj is trained whole beside an adapter (2)" in reason(mixed)


@pytest.mark.parametrize("saved", ["input_layernorm", "q_norm", "mlp", "self_attn"])
def test_layers_with_modules_trained_whole_follow_their_training(saved: str) -> None:
    model = FAMILIES["qwen3"]().bfloat16()
    apply_lora(
        model, rank=2, target=["o_proj" if saved != "self_attn" else "down_proj"], modules_to_save=[saved]
    )
    twin, policy = Policy(copy.deepcopy(model)), Policy(model)
    fuse(model)
    before = policy(forest()).detach()
    for trained in (twin.model, model):
        with torch.no_grad():
            for name, parameter in trained.named_parameters():
                if parameter.requires_grad and "lora" not in name:
                    parameter.mul_(3)
    after, plain = policy(forest()).detach(), twin(forest()).detach()
    assert (after - plain).norm() < 0.2 * (after - before).norm()


def test_dropout_of_the_model_runs_plain_in_training_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(build("llama", attention_dropout=0.5))
    fusion = fuse(model)
    plain_calls: list[int] = []
    for layer in fusion.layers:
        own = layer.plain
        monkeypatch.setattr(layer, "plain", lambda *a, own=own, **k: (plain_calls.append(1), own(*a, **k))[1])
    policy = Policy(model)
    policy.eval()(forest())
    assert not plain_calls
    policy.train()(forest())
    assert len(plain_calls) == 2
