"""Every adapter of peft on disk: peft reads it, a resumed run has its every bit, and merged it says the same."""

import warnings
from pathlib import Path

import pytest
import torch

from luthier.config.peft_types import prompt_types
from luthier.errors import ModelError
from luthier.export.peft import merge_peft
from luthier.models.peft_adapters.attach import attach_peft
from luthier.models.peft_adapters.files import load_exactly, save_exactly, save_peft
from peft_parts import IDS, adapted, logits, trained, types
from tiny_models import tiny_smollm

peft = pytest.importorskip("peft")
KINDS = types()
NOT_MERGED = {"adaption_prompt", "beft"}
"""Types that change layers and still are no change of this model's weights: beft needs biases."""


@pytest.mark.parametrize("kind", KINDS)
def test_peft_loads_what_is_saved(kind: str, tmp_path: Path) -> None:
    model, _, _ = trained(kind)
    expected = logits(model)
    save_peft(model, tmp_path, base_name="none")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.PeftModel.from_pretrained(tiny_smollm(), str(tmp_path)).eval()
    with torch.no_grad():
        found = theirs(input_ids=IDS).logits[:, -IDS.shape[1] :]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    own = tiny_smollm()
    attach_peft(own, tmp_path)
    torch.testing.assert_close(logits(own), expected, atol=1e-4, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in own.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_going_on_has_every_bit(kind: str, tmp_path: Path) -> None:
    model, _, _ = trained(kind)
    save_exactly(model, tmp_path)
    again, _ = adapted(kind)
    load_exactly(again, tmp_path)
    assert torch.equal(logits(again), logits(model))
    for (name, one), (_, two) in zip(model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize("kind", KINDS)
def test_merged_it_says_the_same_or_is_refused(kind: str, tmp_path: Path) -> None:
    model, _, _ = trained(kind)
    expected = logits(model)
    save_peft(model, tmp_path, base_name="none")
    own = tiny_smollm()
    adapter = attach_peft(own, tmp_path)
    try:
        merge_peft(own, adapter)
    except ModelError as error:
        assert kind in str(error) and "luthier chat" in str(error)
        assert kind in prompt_types() or kind in NOT_MERGED, str(error)
        return
    assert kind not in prompt_types() and kind not in NOT_MERGED
    torch.testing.assert_close(logits(own), expected, atol=2e-3, rtol=1e-3)
    assert own.state_dict().keys() == tiny_smollm().state_dict().keys()
