"""The reference is the model as it was: adapters off, modules trained whole too, fused or not, all weights or few."""

import pytest
import torch
from torch import Tensor

from luthier.data.batch import Batch, collate
from luthier.models.fused.check import fuse_checked
from luthier.models.lora import apply_lora, disable_adapters
from luthier.models.policy import Policy
from luthier.models.reference import Reference
from luthier.models.tripwire import choose_policy
from method_rows import judged_rows
from tiny_models import tiny_llama, tiny_smollm


def batch() -> Batch:
    return collate(judged_rows("pair", 4))


def moved(policy: Policy) -> Reference:
    """The policy's reference; the policy has moved far away from it since."""
    reference, generator = Reference(policy), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in reference.trained:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return reference


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("saved", [(), ("lm_head",), ("embed_tokens",)])
def test_with_an_adapter_it_is_the_model_without(fused: bool, saved: tuple[str, ...]) -> None:
    model = tiny_llama() if saved != ("embed_tokens",) else tiny_smollm()
    policy = choose_policy(model).policy
    apply_lora(policy.model, rank=4, modules_to_save=saved, generator=torch.Generator().manual_seed(1))
    if fused:
        fuse_checked(policy)
    with torch.no_grad():
        first: Tensor = policy(batch())
    reference = moved(policy)
    assert torch.equal(reference.logprobs(batch()), first)  # the same code on the same weights
    with torch.no_grad(), disable_adapters(policy.model):
        torch.testing.assert_close(policy(batch()), first, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        now = policy(batch())
    assert float((now - first).abs().max()) > 0.1
    reference.logprobs(batch())
    with torch.no_grad():
        assert torch.equal(policy(batch()), now)  # the live weights are back


@pytest.mark.parametrize("fused", [False, True])
def test_with_all_weights_trained_it_is_a_copy(fused: bool) -> None:
    policy = choose_policy(tiny_smollm()).policy
    policy.model.requires_grad_(True)
    if fused:
        fuse_checked(policy)
    with torch.no_grad():
        first = policy(batch())
    reference = moved(policy)
    assert torch.equal(reference.logprobs(batch()), first)
    assert reference.num_bytes == sum(p.numel() * p.element_size() for p in policy.parameters())


def test_it_needs_no_gradient_no_dropout_and_leaves_training_mode_on() -> None:
    policy = choose_policy(tiny_llama()).policy
    apply_lora(policy.model, rank=4, dropout=0.5, generator=torch.Generator().manual_seed(1))
    reference = Reference(policy)
    policy.train()
    found = reference.logprobs(batch())
    assert not found.requires_grad and policy.training
    assert torch.equal(found, reference.logprobs(batch()))
    assert all(parameter.requires_grad for parameter in reference.trained)


def test_live_weights_come_back_after_an_error() -> None:
    policy = choose_policy(tiny_llama()).policy
    apply_lora(policy.model, rank=4, generator=torch.Generator().manual_seed(1))
    reference = moved(policy)
    before = [parameter.data_ptr() for parameter in reference.trained]
    with pytest.raises(ZeroDivisionError), reference.in_place():
        assert [p.data_ptr() for p in reference.trained] != before
        raise ZeroDivisionError
    assert [parameter.data_ptr() for parameter in reference.trained] == before
