"""Fused layers stay only where they give the plain layers' numbers, in 16 bit too, where rounding hides much."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from fused_parts import FAMILIES, adapted
from luthier.models.fused.check import fuse_checked
from luthier.models.fused.layer import FusedLayer
from luthier.models.lora import apply_lora
from luthier.models.policy import Policy
from tiny_models import build


def test_a_fused_layer_that_fails_is_taken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(FAMILIES["llama"]())

    def fails(self: FusedLayer, *args: Any, **kwargs: Any) -> Any:
        raise ZeroDivisionError("no such kernel")

    monkeypatch.setattr(FusedLayer, "_halves", fails)
    assert fuse_checked(Policy(model)) == (None, "no layer is fused: ZeroDivisionError: no such kernel")
    assert not any("forward" in vars(module) for module in model.modules())


def test_the_check_leaves_new_adapters_as_they_were() -> None:
    model = FAMILIES["llama"]()
    apply_lora(model, rank=4)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    assert fuse_checked(Policy(model))[0] is not None
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_checked_fusion_accepts_every_family(family: str) -> None:
    model = adapted(FAMILIES[family]())
    fusion, line = fuse_checked(Policy(model))
    assert fusion is not None and f"{len(fusion.layers)} of {len(fusion.layers)} layers fused" in line


def doubled_gradient(layer: FusedLayer) -> None:
    assert layer.mlp is not None
    backward = layer.mlp.backward

    def wrong(*args: Any) -> tuple[Tensor | None, list[Tensor]]:
        grad_hidden, of_parameters = backward(*args)
        return grad_hidden, [2 * gradient for gradient in of_parameters]

    layer.mlp.backward = wrong  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("spoil", "symptom"),
    [
        (lambda layer: setattr(layer.mlp, "activation", "gelu"), "log-probabilities differ"),
        (lambda layer: setattr(layer.attention.residual, "multiplier", 0.5), "log-probabilities differ"),
        (doubled_gradient, "a gradient differs"),
    ],
)
def test_a_wrong_description_is_found_and_taken_off(
    spoil: Callable[[FusedLayer], None], symptom: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(FAMILIES["llama"]())
    original = FusedLayer.__init__

    def spoiled(self: FusedLayer, *args: Any, **named: Any) -> None:
        original(self, *args, **named)
        spoil(self)

    monkeypatch.setattr(FusedLayer, "__init__", spoiled)
    fusion, line = fuse_checked(Policy(model))
    assert fusion is None and line.startswith("no layer is fused: ") and symptom in line
    assert not any("forward" in vars(module) for module in model.modules())


def in_bf16(model: PreTrainedModel, **adapters: Any) -> PreTrainedModel:
    """Frozen weights in bf16, trained ones in fp32."""
    adapted(model, **adapters)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_checked_fusion_accepts_every_family_in_bf16(family: str) -> None:
    fusion, line = fuse_checked(Policy(in_bf16(FAMILIES[family]())))
    assert fusion is not None, line


@pytest.mark.parametrize("factor", [0.9, 1.15])
def test_a_gradient_that_is_slightly_wrong_in_bf16_is_found(
    factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than what rounding makes of a whole model in bf16: only a layer by itself tells."""
    original = FusedLayer.__init__

    def spoiled(self: FusedLayer, *args: Any, **named: Any) -> None:
        original(self, *args, **named)
        assert self.mlp is not None
        backward = self.mlp.backward

        def wrong(*given: Any) -> tuple[Tensor | None, list[Tensor]]:
            grad_hidden, of_parameters = backward(*given)
            return grad_hidden, [factor * gradient for gradient in of_parameters]

        self.mlp.backward = wrong  # pyright: ignore[reportAttributeAccessIssue]

    monkeypatch.setattr(FusedLayer, "__init__", spoiled)
    fusion, line = fuse_checked(Policy(in_bf16(FAMILIES["llama"]())))
    assert fusion is None and "in a layer is off by" in line, line


def test_a_wrong_window_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted(build("mistral", sliding_window=100))  # longer than the probe: its numbers cannot tell
    original = FusedLayer.__init__

    def spoiled(self: FusedLayer, layer: nn.Module, described: Any, workspace: Any, **named: Any) -> None:
        attention = replace(described.attention, rule=replace(described.attention.rule, window=None))
        original(self, layer, replace(described, attention=attention), workspace, **named)

    monkeypatch.setattr(FusedLayer, "__init__", spoiled)
    assert fuse_checked(Policy(model)) == (
        None,
        "no layer is fused: attention windows {None} instead of {100}",
    )
