"""Compiled decoder layers compute what plain ones do, and one compilation serves every layout of segments."""

import pytest
import torch
from torch import nn

from luthier.models.regional import compile_layers, decoder_layers
from tiny_models import tiny_gpt2, tiny_llama
from training_parts import make_trainer


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_layers_are_found_by_what_they_are(make) -> None:
    model = make()
    layers = decoder_layers(model)
    assert len(layers) == model.config.num_hidden_layers
    assert all(any(isinstance(m, nn.Module) for m in layer.children()) for layer in layers)


def test_fused_layers_and_other_models_are_left_alone() -> None:
    model = tiny_llama()
    for layer in decoder_layers(model):
        layer.forward = layer.forward
    assert compile_layers(model) == "no decoder layer is compiled: all are fused"
    assert all(layer._compiled_call_impl is None for layer in decoder_layers(model))
    model.config.num_hidden_layers = 99
    assert compile_layers(model) == "no decoder layer is compiled: the model keeps no list of them"


@pytest.mark.slow
def test_compiled_training_is_the_same_and_compiles_once() -> None:
    plain, compiled = make_trainer(), make_trainer()
    assert compile_layers(compiled.policy.model) == "compiling 2 of 2 decoder layers on first use"
    assert all(layer._compiled_call_impl is None for layer in decoder_layers(plain.policy.model))
    graphs = []
    for step in range(4):
        one, two = (t.step(t.source.step(step)).values for t in (plain, compiled))
        assert one["loss"] == pytest.approx(two["loss"], rel=1e-6)
        assert one["grad_norm"] == pytest.approx(two["grad_norm"], rel=1e-5)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert graphs[-1] == graphs[0] > 0
