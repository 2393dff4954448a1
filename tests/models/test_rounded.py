"""Models that are trained for few bits: which layers are rounded, how they compute, and what becomes of them."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from luthier.errors import ModelError
from luthier.kernels.quant.q4_0 import Q4_0
from luthier.kernels.rounding import Rounding
from luthier.models.decoding.check import check
from luthier.models.fused.check import fuse_checked
from luthier.models.lora import LoraLinear, adapter_parameters, apply_lora, disable_adapters, merge_adapters
from luthier.models.quantised.load import Quantisation
from luthier.models.rounded.apply import Rounded, round_linears
from luthier.models.rounded.linear import RoundedLinear
from luthier.models.tripwire import choose_policy, probe
from tiny_models import FAMILIES, tiny_gpt2

SIZES = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}


def rounded(skip: tuple[str, ...] = (), whole: tuple[str, ...] = (), **options: object) -> Rounded:
    rounding = Rounding(Q4_0(), **options)  # pyright: ignore[reportArgumentType]
    return Rounded(rounding, Quantisation(Q4_0(), "q4_0", skip, whole))


def built(
    family: str, how: Rounded | None = None, *, adapters: bool = True, init: str = "kaiming"
) -> PreTrainedModel:
    model = FAMILIES[family](**SIZES)
    if how is not None:
        assert round_linears(model, how)
    if adapters:
        apply_lora(model, rank=4, init=init, generator=torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, LoraLinear):
                    module.lora_B.add_(torch.empty_like(module.lora_B).normal_(0, 0.02, generator=generator))
    else:
        model.requires_grad_(True)
    return model


def by_hand(model: PreTrainedModel) -> PreTrainedModel:
    """The same model with plain layers whose weights, adapters added, are what Q4_0 decodes to."""
    merge_adapters(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, RoundedLinear):
            plain = module.opened()
            plain.weight = nn.Parameter(Q4_0().rounded(plain.weight.detach(), torch.empty_like(plain.weight)))
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, plain)
    return model


def numbers(model: PreTrainedModel, *, fused: bool) -> tuple[Tensor, dict[str, Tensor], str]:
    policy = choose_policy(model).policy
    said = fuse_checked(policy)[1] if fused else ""
    logp_N = policy(probe(model))
    (logp_N * torch.linspace(0.5, 1.5, len(logp_N))).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logp_N.detach(), found, said


@pytest.mark.parametrize("inputs", [None, "q8_0"])
@pytest.mark.parametrize("adapters", [True, False])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_fused_layers_round_as_plain_ones(family: str, adapters: bool, inputs: str | None) -> None:
    how = rounded(("0.mlp.down_proj",) if family == "llama" else (), inputs=inputs)
    expected_N, theirs, _ = numbers(built(family, how, adapters=adapters), fused=False)
    logp_N, ours, said = numbers(built(family, how, adapters=adapters), fused=True)
    assert said.startswith("2 of 2 layers fused"), said
    torch.testing.assert_close(logp_N, expected_N, rtol=1e-5, atol=1e-5)
    assert set(ours) == set(theirs) and len(ours) >= 8
    for name, gradient in ours.items():
        assert (gradient - theirs[name]).norm() <= 1e-4 * theirs[name].norm(), name


@pytest.mark.parametrize("init", ["kaiming", "pissa"])
@pytest.mark.parametrize("family", ["smollm", "qwen3", "phi3"])
def test_what_is_computed_is_what_will_be_stored(family: str, init: str) -> None:
    model = built(family, rounded(), init=init)
    ids = torch.arange(1, 30)[None]
    with torch.no_grad():
        found = model.eval()(ids).logits
        with disable_adapters(model):
            without = model(ids).logits
        assert torch.equal(model(ids).logits, found), "what is kept is that of the adapter again"
    fused = choose_policy(model).policy
    fuse_checked(fused)
    logp_N = fused(probe(model)).detach()
    plain = by_hand(built(family, rounded(), init=init))
    with torch.no_grad():
        torch.testing.assert_close(found, plain(ids).logits, rtol=1e-4, atol=1e-4)
        assert (without - found).norm() > 1e-2 * found.norm()
    torch.testing.assert_close(
        logp_N, choose_policy(plain).policy(probe(plain)).detach(), rtol=1e-4, atol=1e-4
    )


def test_answers_follow_the_weights() -> None:
    """What is kept rounded between answers is made anew when a master has moved."""
    for init in ("kaiming", "pissa"):
        model = built("smollm", rounded(), init=init).eval()
        ids = torch.arange(1, 30)[None]
        with torch.no_grad():
            before = model(ids).logits
            assert check(model).shape is not None, check(model).reason
            for parameter in adapter_parameters(model).values():
                parameter.add_(0.05)
            after = model(ids).logits
            assert check(model).shape is not None, check(model).reason
            fresh = by_hand(model)(ids).logits
        assert (after - before).norm() > 1e-2 * before.norm()
        torch.testing.assert_close(after, fresh, rtol=1e-4, atol=1e-4)


def test_training_holds_no_second_weight() -> None:
    model = built("llama", rounded()).eval()
    with torch.no_grad():
        model(torch.arange(1, 9)[None])
    layers = [module for module in model.modules() if isinstance(module, RoundedLinear)]
    assert len(layers) == 14 and all(layer._kept is not None for layer in layers)
    model.train()
    assert all(layer._kept is None for layer in layers)


def test_names_of_weights_stay(tmp_path: Path) -> None:
    model = built("smollm", rounded(), adapters=False)
    assert model.state_dict().keys() == FAMILIES["smollm"](**SIZES).state_dict().keys()
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name)), name


def test_what_is_rounded_and_what_cannot_be() -> None:
    model = FAMILIES["llama"](**SIZES)
    names = round_linears(model, rounded(("down_proj", "layers.0"), ("q_proj",)))
    expected = [*(f"self_attn.{p}_proj" for p in "kvo"), "mlp.gate_proj", "mlp.up_proj"]
    assert set(names) == {f"model.layers.1.{name}" for name in expected}
    assert type(model.get_output_embeddings()) is nn.Linear
    with pytest.raises(ModelError, match=r"qat\.skip: no module is named nose"):
        round_linears(FAMILIES["llama"](**SIZES), rounded(("nose",)))
    with pytest.raises(ModelError, match="q4_0 rounds no layer of this model"):
        round_linears(tiny_gpt2(), rounded())
    odd = FAMILIES["llama"](intermediate_size=48)
    assert not any("down_proj" in name for name in round_linears(odd, rounded()))
