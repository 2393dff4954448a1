"""What holds for every adapter that the installed peft registers, but for those that are refused with a reason."""

import pytest
import torch

from luthier.config.peft_types import REFUSED, peft_types
from luthier.models.fused.check import fuse_checked
from luthier.models.peft_adapters.held import without_peft
from luthier.models.policy import Policy
from luthier.models.reference import WithoutPrompt
from luthier.models.tripwire import choose_policy
from peft_parts import adapted, batch, logits, trained, types
from tiny_models import tiny_smollm

pytest.importorskip("peft")
KINDS = types()


def test_the_registry_is_that_of_the_installed_version() -> None:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    known = peft_types() or {}
    assert {kind.value.lower() for kind in PEFT_TYPE_TO_CONFIG_MAPPING} == set(known)
    assert set(REFUSED) <= set(known)
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        fields = {name for name, field in config.__dataclass_fields__.items() if field.init}
        assert set(known[kind.value.lower()]) <= fields, kind


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_nothing_else_does(kind: str) -> None:
    model, adapter, losses = trained(kind)
    assert losses[-1] < losses[0] - 0.003, losses
    for name, parameter in model.named_parameters():
        own = id(parameter) not in adapter.base
        assert own or not parameter.requires_grad, f"{name} is the model's own"
        assert parameter.requires_grad or parameter.grad is None
    before = dict(tiny_smollm().named_parameters())
    kept = {
        name.replace(".base_layer", ""): p for name, p in model.named_parameters() if id(p) in adapter.base
    }
    assert kept and all(torch.equal(before[name], p) for name, p in kept.items() if name in before)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_have_the_loss_of_single_ones(kind: str) -> None:
    model, _, _ = trained(kind)
    rows = batch()
    with torch.no_grad():
        alone_N = Policy(model, "plain").eval()(rows)
        policy = choose_policy(model).policy.eval()
        packed_N = policy(rows)
    torch.testing.assert_close(packed_N, alone_N, atol=2e-4, rtol=1e-4)
    head = kind == "trainable_tokens"  # the head is tied to what it changes
    assert policy.layout == ("plain" if head else "packed")


@pytest.mark.parametrize("kind", KINDS)
def test_switched_off_it_is_the_model_itself(kind: str) -> None:
    model, _, _ = trained(kind)
    expected, changed = logits(tiny_smollm()), logits(model)
    with without_peft(model):
        torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(model), changed)
    assert (changed - expected).norm() > 1e-3 * expected.norm()


@pytest.mark.parametrize("kind", ["prompt_tuning", "prefix_tuning"])
def test_a_reference_goes_without_the_prompt(kind: str) -> None:
    policy, rows = Policy(trained(kind)[0], "packed"), batch()
    with torch.no_grad():
        expected_N = Policy(tiny_smollm(), "packed").eval()(rows)
        torch.testing.assert_close(WithoutPrompt(policy).logprobs(rows), expected_N, atol=1e-5, rtol=1e-5)
        assert (policy(rows) - expected_N).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["ia3", "ln_tuning", "prefix_tuning", "adaption_prompt"])
def test_fused_layers_step_aside(kind: str) -> None:
    model, _ = adapted(kind)
    fusion, line = fuse_checked(Policy(model, "packed"))
    assert (fusion is None or not fusion.layers) and "no layer is fused" in line, line
    assert "of the library peft" in line or "stand before" in line, line


def test_a_learned_prompt_leaves_layers_fused() -> None:
    model, _, _ = trained("prompt_tuning")
    policy = Policy(model, "packed").eval()
    with torch.no_grad():
        plain_N = policy(batch())
    fusion, line = fuse_checked(policy)
    assert fusion is not None and len(fusion.layers) == 2, line
    with torch.no_grad():
        torch.testing.assert_close(policy(batch()), plain_N, atol=1e-4, rtol=1e-4)
    fusion.release()
