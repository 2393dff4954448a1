"""Small updates outlive a merge into bfloat16; rounded to the nearest they would not."""

from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from lora_models import build
from luthier.export.merge import merge_to_folder
from luthier.export.peft import merge_peft_to_folder
from luthier.export.rounding import rounded_sum
from luthier.kernels.quant.nf4 import NF4
from luthier.models.adapter_files import save_adapter
from luthier.models.lora import LoraLinear, adapter_parameters, apply_lora
from luthier.models.quantised.load import Quantisation

SMALL = 5e-4
"""Of an update, against the weights; in bfloat16 these can change by 2e-3 to 4e-3 of themselves and half of that."""


def tensors(folder: Path) -> dict[str, Tensor]:
    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


def small_adapter(root: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """A base and an adapter with updates of less than half of a step of bf16; returns these, by the weight's name."""
    model = build("llama", hidden_size=128, intermediate_size=512)
    model.to(dtype).save_pretrained(root / "base")
    model.float()
    apply_lora(model, rank=4)
    draw = torch.Generator().manual_seed(1)
    found = {}
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            parameter.copy_(torch.randn(parameter.shape, generator=draw))
        for name, module in model.named_modules():
            if isinstance(module, LoraLinear):
                weight = module.base.get_parameter("weight")
                wanted = SMALL * weight.abs().mean() / module.delta_weight().std()
                module.lora_B.mul_(wanted)
                found[f"{name}.weight"] = module.delta_weight()
    save_adapter(model, root / "adapter", base_name=str(root / "base"))
    return found


def kept(before: Tensor, after: Tensor, exact: Tensor) -> tuple[float, float]:
    """How much of the update is in the change (regression), and the standard deviation of that by chance."""
    before, delta = before.double(), exact.double() - before.double()
    bits = exact.float().view(torch.int32) & ~0xFFFF
    inward, outward = (one.view(torch.float32).double() for one in (bits, bits + 0x10000))
    variance = (outward - exact.double()).abs() * (exact.double() - inward).abs()
    square = delta.square().sum()
    share = ((after.double() - before) * delta).sum() / square
    return float(share), float((delta.square() * variance).sum().sqrt() / square)


def test_the_whole_update_is_in_the_merged_weights(tmp_path: Path) -> None:
    deltas = small_adapter(tmp_path, torch.bfloat16)
    merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    before, after = tensors(tmp_path / "base"), tensors(tmp_path / "out")
    old = torch.cat([before[name].flatten() for name in deltas])
    new = torch.cat([after[name].flatten() for name in deltas])
    exact = old.float() + torch.cat([one.flatten() for one in deltas.values()])
    share, deviation = kept(old, new, exact)
    assert deviation < 0.05 and abs(share - 1) < 4 * deviation
    assert kept(old, exact.bfloat16(), exact)[0] < 0.7  # rounded to the nearest


def test_a_merge_gives_the_same_bytes_each_time_and_other_draws_to_each_tensor(tmp_path: Path) -> None:
    small_adapter(tmp_path, torch.bfloat16)
    for name in ("one", "two"):
        merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / name)
    (one,), (two,) = ((tmp_path / name).glob("*.safetensors") for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    half = torch.full((64, 64), 1 + 2**-8)
    ones = torch.ones(64, 64, dtype=torch.bfloat16)
    first, again, other = (rounded_sum(half, ones, name) for name in ("a", "a", "b"))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_without_an_update_the_base_stays_what_it_is(dtype: torch.dtype, tmp_path: Path) -> None:
    model = build("llama").to(dtype)
    model.save_pretrained(tmp_path / "base")
    model.float()
    apply_lora(model, rank=4)  # B is zero
    save_adapter(model, tmp_path / "adapter", base_name="base")
    merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    before, after = tensors(tmp_path / "base"), tensors(tmp_path / "out")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_updates_that_the_nearest_numbers_keep_are_rounded_to_these() -> None:
    """Chance would add noise for nothing."""
    draw = torch.Generator().manual_seed(0)
    base = torch.randn(64, 64, generator=draw).bfloat16()
    total = base.float() + 0.1 * torch.randn(64, 64, generator=draw)
    assert torch.equal(rounded_sum(total, base, "a"), total.bfloat16())
    total = base.float() + 3e-4 * torch.randn(64, 64, generator=draw)
    assert not torch.equal(rounded_sum(total, base, "a"), total.bfloat16())


def test_float16_and_decoded_weights_are_rounded_to_the_nearest(tmp_path: Path) -> None:
    deltas = small_adapter(tmp_path, torch.float16)
    merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    before, after = tensors(tmp_path / "base"), tensors(tmp_path / "out")
    for name, delta in deltas.items():
        assert torch.equal(after[name], (before[name].float() + delta).half())
    stored = tmp_path / "stored"
    stored.mkdir()
    deltas = small_adapter(stored, torch.bfloat16)
    for wide in (True, False):
        out = stored / f"out-{wide}"
        how = Quantisation(NF4(), "nf4")
        merge_to_folder(stored / "base", stored / "adapter", out, quantisation=how, wide=wide)
    exact, rounded = tensors(stored / "out-True"), tensors(stored / "out-False")
    for name in deltas:
        assert torch.equal(rounded[name], exact[name].bfloat16())


def test_adapters_that_peft_computes_keep_small_updates_too(tmp_path: Path) -> None:
    base = build("llama", hidden_size=128, intermediate_size=512).to(torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    before = tensors(tmp_path / "base")
    adapted = peft.get_peft_model(base.float(), peft.LoHaConfig(r=4, target_modules=["q_proj", "up_proj"]))
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "hada" in name:
                parameter.copy_(0.018 * torch.randn(parameter.shape, generator=draw))
    adapted.save_pretrained(tmp_path / "adapter")
    merge_peft_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "wide", wide=True)
    merge_peft_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "out")
    exact, after = tensors(tmp_path / "wide"), tensors(tmp_path / "out")
    names = [name for name in before if not torch.equal(before[name].float(), exact[name].float())]
    assert names and all(torch.equal(before[name], after[name]) for name in before if name not in names)
    old, new, whole = (torch.cat([one[name].flatten() for name in names]) for one in (before, after, exact))
    share, deviation = kept(old, new, whole)
    assert deviation < 0.1 and abs(share - 1) < 4 * deviation
    nearest, _ = kept(old, whole.bfloat16(), whole)
    assert nearest < 1 - 4 * deviation  # rounded to the nearest it would be seen
