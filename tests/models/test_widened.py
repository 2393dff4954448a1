"""A 16-bit model that computes in fp32 for a while, and the check of decoding that measures rounding from it."""

from collections.abc import Callable

import pytest
import torch
from transformers import PreTrainedModel

from luthier.models.decoding.check import check
from luthier.models.decoding.widened import logits_in_fp32, widened
from luthier.models.lora import adapters, apply_lora
from tiny_models import FAMILIES, tiny_llama

TEXTS = [torch.arange(3, 20), torch.tensor([5, 90, 7])]
SCALE = 4
"""On weights: attention that turns on small differences."""


def deep_llama() -> PreTrainedModel:
    """So deep and coarse that its plain forward in bf16 is far from what fp32 gives."""
    model = tiny_llama(num_hidden_layers=24, hidden_size=64)
    with torch.no_grad():
        for parameter in model.get_submodule("model.layers").parameters():
            parameter.mul_(SCALE if parameter.dim() == 2 else 1)
    return model.bfloat16()


def adapted_llama() -> PreTrainedModel:
    model = tiny_llama()
    apply_lora(model, rank=3)
    for module in adapters(model).values():
        torch.nn.init.normal_(module.get_parameter("lora_B"), std=0.3)
    return model


@torch.no_grad()
@pytest.mark.parametrize("make", [*FAMILIES.values(), adapted_llama])
def test_it_is_the_forward_of_the_model_in_fp32_behind_its_embedding(
    make: Callable[[], PreTrainedModel],
) -> None:
    narrow, wide = make().bfloat16(), make().bfloat16().float()
    embed = narrow.get_input_embeddings()
    hook = wide.get_input_embeddings().register_forward_hook(lambda _, given, out: embed(*given).float())
    before = {name: (p.data_ptr(), p.dtype) for name, p in narrow.named_parameters()}
    for found, text in zip(logits_in_fp32(narrow, TEXTS), TEXTS, strict=True):
        right = wide(input_ids=text[None]).logits[0]
        assert found.dtype == torch.float32
        assert float((found - right).norm() / right.norm()) < 1e-6
    hook.remove()
    assert before == {name: (p.data_ptr(), p.dtype) for name, p in narrow.named_parameters()}
    assert narrow(input_ids=TEXTS[0][None]).logits.dtype == torch.bfloat16


@torch.no_grad()
def test_a_forward_that_fails_leaves_the_weights_as_they_were() -> None:
    model = deep_llama()
    inner = model.get_submodule("model.layers.3.mlp")
    handle = inner.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), widened(model):
        model(input_ids=TEXTS[0][None])
    handle.remove()
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@torch.no_grad()
def test_a_deep_model_in_16_bit_is_taken_apart_though_its_plain_forward_is_off() -> None:
    model = deep_llama()
    plain = model(input_ids=TEXTS[0][None]).logits[0].float()
    truth = logits_in_fp32(model, TEXTS)[0]
    off = (plain - truth).norm(dim=-1) / truth.norm(dim=-1)
    assert off.max() > 0.2  # else the test says nothing
    checked = check(model)
    assert checked.shape is not None, checked.reason


@torch.no_grad()
def test_what_a_deep_model_computes_otherwise_is_found_out_in_16_bit() -> None:
    model = deep_llama()
    layer = model.get_submodule("model.layers.0")
    forward = layer.forward
    layer.forward = lambda hidden, *given, **named: -forward(hidden, *given, **named)  # type: ignore[method-assign]
    checked = check(model)
    assert checked.shape is None and "of what fp32 gives (limit" in checked.reason
