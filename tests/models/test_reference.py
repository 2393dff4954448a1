"""The reference is the model as it was: adapters off, modules trained whole too, fused or not, all weights or few."""

import numpy as np
import pytest
import torch
from torch import Tensor

from luthier.data.batch import Batch, collate
from luthier.data.sharing import share_prefixes
from luthier.methods._mismatched import select
from luthier.models.fused.check import fuse_checked
from luthier.models.lora import apply_lora, disable_adapters
from luthier.models.policy import Policy
from luthier.models.reference import GIVEN, Known, OtherModel, OwnStart, Synchronised
from luthier.models.tripwire import choose_policy
from method_rows import judged_rows
from tiny_models import tiny_llama, tiny_smollm


def batch() -> Batch:
    return collate(judged_rows("pair", 4))


def moved(policy: Policy) -> OwnStart:
    """The policy's reference; the policy has moved far away from it since."""
    reference, generator = OwnStart(policy), torch.Generator().manual_seed(2)
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
    reference = OwnStart(policy)
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


def test_a_synchronised_reference_moves_by_alpha_every_so_many_steps() -> None:
    policy = choose_policy(tiny_smollm()).policy
    policy.model.requires_grad_(True)
    reference = Synchronised(policy, every=3, alpha=0.6)
    expected = [parameter.detach().clone() for parameter in reference.trained]
    generator = torch.Generator().manual_seed(4)
    for step in range(1, 8):
        with torch.no_grad():
            for parameter in reference.trained:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        reference.after_step(step)
        if step in (3, 6):
            expected = [0.6 * p.detach() + 0.4 * e for p, e in zip(reference.trained, expected, strict=True)]
        for weight, other in zip(reference.frozen, expected, strict=True):
            torch.testing.assert_close(weight, other)
    with torch.no_grad():
        now = policy(batch())
        assert float((reference.logprobs(batch()) - now).abs().max()) > 1e-3
        for parameter, weight in zip(reference.trained, expected, strict=True):
            parameter.copy_(weight)
        torch.testing.assert_close(reference.logprobs(batch()), policy(batch()))


@pytest.mark.parametrize("fused", [False, True])
def test_a_hard_update_makes_it_the_model_adapters_and_all(fused: bool) -> None:
    policy = choose_policy(tiny_llama()).policy
    apply_lora(policy.model, rank=4, generator=torch.Generator().manual_seed(1))
    if fused:
        fuse_checked(policy)
    reference, generator = Synchronised(policy, every=1, alpha=1.0), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in reference.trained:
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        now = policy(batch())
    assert not torch.equal(reference.logprobs(batch()), now)
    reference.after_step(1)
    assert torch.equal(reference.logprobs(batch()), now)
    with torch.no_grad():
        for parameter in reference.trained:
            parameter.zero_()
    assert torch.equal(reference.logprobs(batch()), now)  # a copy, not the live weights


def test_another_model_says_what_it_says_alone() -> None:
    other = choose_policy(tiny_llama()).policy
    with torch.no_grad():
        alone = other(batch())
    reference = OtherModel(other)
    other.train()
    assert torch.equal(reference.logprobs(batch()), alone) and other.training
    assert not any(parameter.requires_grad for parameter in other.parameters())
    assert reference.num_bytes == sum(4 * p.numel() for p in other.parameters())


def test_what_is_known_comes_with_the_rows_through_every_layout() -> None:
    rows = judged_rows("pair", 6)
    for row in rows:
        row.given[GIVEN] = (100 * row.row + np.arange(row.num_predictions)).astype(np.float32)
    whole, known = collate(rows), Known()
    assert known.logprobs(whole).tolist() == [value for row in rows for value in row.given[GIVEN]]
    assert torch.equal(known.logprobs(share_prefixes(whole)), known.logprobs(whole))
    padded = whole.padded(len(whole.tokens_T) + 5, len(whole.target_N) + 3, len(whole.parent_S) + 2)
    assert (
        torch.equal(known.logprobs(padded)[:-3], known.logprobs(whole))
        and not known.logprobs(padded)[-3:].any()
    )
    part = select(whole, torch.arange(whole.num_sequences) % 2 == 1)
    assert part is not None
    assert torch.equal(known.logprobs(part), known.logprobs(whole)[whole.sequence_N % 2 == 1])
