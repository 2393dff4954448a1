"""Every adapter of the LoRA family beside a base in few bits is what it is beside the decoded base."""

import pkgutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import luthier.models.lora_init
from lora_models import difference, logits, teach
from luthier.errors import ModelError
from luthier.kernels.quant.hqq import HQQ
from luthier.kernels.quant.nf4 import NF4
from luthier.models.fused.check import fuse_checked
from luthier.models.load import load_model
from luthier.models.lora import LoraLinear, adapter_parameters, adapters, apply_lora, merge_adapters
from luthier.models.lora_init import needs_rows
from luthier.models.lora_original import begin_from_originals
from luthier.models.lora_watch import begin_from_rows
from luthier.models.policy import Policy
from luthier.models.quantised.linear import QuantLinear
from luthier.models.quantised.load import Quantisation, open_all, quantised
from luthier.models.tripwire import probe
from tiny_models import tiny_llama

CPU = torch.device("cpu")
NF = Quantisation(NF4(), "nf4")
INITS = [m.name for m in pkgutil.iter_modules(luthier.models.lora_init.__path__) if m.name[0] != "_"]
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {"init": name} for name in INITS},
    "dora": {"dora": True},
    "dora, pissa": {"dora": True, "init": "pissa"},
    "dora, olora, rslora": {"dora": True, "init": "olora", "rslora": True},
    "frozen a": {"train_a": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("stored")
    tiny_llama().save_pretrained(where)
    return where


def adapted(folder: Path, variant: str, *, opened: bool = False) -> PreTrainedModel:
    model = load_model(folder, torch.float32, CPU, NF)
    if opened:
        open_all(model)
    settings = VARIANTS[variant]
    apply_lora(model, rank=4, generator=torch.Generator().manual_seed(0), **settings)
    if needs_rows(init := settings.get("init", "kaiming")):
        begin_from_rows(Policy(model, "plain"), init, [probe(model)])
    return model


def gradients(model: PreTrainedModel, *, fused: bool) -> tuple[Tensor, dict[str, Tensor]]:
    policy = Policy(model)
    assert not fused or fuse_checked(policy)[1].startswith("2 of 2 layers fused")
    logp_N = policy(probe(model))
    (logp_N * torch.linspace(0.5, 1.5, len(logp_N))).sum().backward()
    return logp_N.detach(), {n: p.grad for n, p in adapter_parameters(model).items() if p.grad is not None}


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_begins_and_learns_as_on_the_decoded_base(variant: str, fused: bool, folder: Path) -> None:
    found = []
    for opened in (False, True):
        model = adapted(folder, variant, opened=opened)
        begun = {name: p.detach().clone() for name, p in adapter_parameters(model).items()}
        before = logits(model)
        teach(model)
        found.append((begun, before, *gradients(model, fused=fused)))
    (begun, before, logp_N, ours), (other, after, expected_N, theirs) = found
    assert begun.keys() == other.keys()
    for name, tensor in begun.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5)
    assert difference(before, after) < 1e-5
    torch.testing.assert_close(logp_N, expected_N, rtol=1e-4, atol=1e-5)
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        assert (gradient - theirs[name]).norm() <= 1e-4 * theirs[name].norm(), name


@pytest.mark.parametrize("variant", VARIANTS)
def test_merged_is_adapted(variant: str, folder: Path) -> None:
    model = adapted(folder, variant)
    teach(model)
    expected = logits(model)
    merge_adapters(model)
    assert not adapters(model) and difference(logits(model), expected) < 1e-5
    assert not quantised(model)


@pytest.mark.parametrize("scheme", [NF4(), HQQ(num_bits=2, group=16)])
def test_loftq_starts_as_near_to_the_original_as_its_rank_allows(scheme: Any, folder: Path) -> None:
    plain = tiny_llama()
    model = load_model(folder, torch.float32, CPU, Quantisation(scheme, "x"))
    stored_alone = difference(logits(model), logits(plain))
    apply_lora(model, rank=8, alpha=24, generator=torch.Generator().manual_seed(0), init="loftq")
    assert begin_from_originals(model, "loftq", folder) == 14
    for name, module in adapters(model).items():
        original = plain.get_submodule(name)
        assert isinstance(module, LoraLinear) and isinstance(module.base, QuantLinear)
        assert isinstance(original, nn.Linear)
        left = torch.linalg.svdvals(original.weight.detach() - module.base.weight)[8:].norm()
        assert float((original.weight - module.weight).detach().norm()) == pytest.approx(
            float(left), rel=1e-3
        )
        assert module.start_A is None
    assert difference(logits(model), logits(plain)) < stored_alone


def test_loftq_needs_the_original_weights(folder: Path, tmp_path: Path) -> None:
    model = load_model(folder, torch.float32, CPU, NF)
    apply_lora(model, rank=4, init="loftq")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ModelError, match="needs safetensors files"):
        begin_from_originals(model, "loftq", tmp_path)
