"""Law 6 and 9 on the real SmolLM2-135M: an adapter in PEFT and its merged folder in plain transformers."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from luthier.export.merge import merge_to_folder
from luthier.models import demo
from luthier.models.adapter_files import save_adapter
from luthier.models.load import resolve_model
from luthier.models.lora import LoraLinear, adapter_parameters, apply_lora

NAME = "demo:smollm2-135m"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(demo.locate(demo.find_demo(NAME)) is None, reason="the demo model is not here"),
]
TOKENS = torch.tensor([[1, 4093, 198, 19556, 28, 638, 359, 346, 47, 2, 198, 1, 520, 9531]])


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=TOKENS).logits


@pytest.mark.parametrize("saved", [[], ["lm_head"]])
def test_adapter_and_merge_of_the_real_model(saved: list[str], tmp_path: Path) -> None:
    base = resolve_model(NAME, offline=True)
    model = load(base)
    before = logits(model)
    apply_lora(model, rank=8, modules_to_save=saved, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_parameters(model).values():
            # Added to what is there: small beside a head's weights, ample for a B that begins at zero.
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    adapted = logits(model)
    span = adapted.abs().max()
    assert (adapted - before).abs().max() / span > 0.01
    save_adapter(model, tmp_path / "adapter", base_name=NAME)
    in_peft = peft.PeftModel.from_pretrained(load(base), str(tmp_path / "adapter"))
    assert (logits(in_peft) - adapted).abs().max() / span < 1e-5
    merge_to_folder(base, tmp_path / "adapter", tmp_path / "merged")
    merged = load(tmp_path / "merged")
    assert merged.config.tie_word_embeddings is True
    # The base is bf16 on disk, so merging rounds each weight once, and exactly once: to one of its two neighbours.
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear):
            weight, exact = merged.get_submodule(name).weight, module.weight.detach()
            inward = exact.view(torch.int32) & ~0xFFFF
            near = [one.view(torch.float32) for one in (inward, inward + 0x10000)]
            assert ((weight == near[0]) | (weight == near[1])).all(), name
    peers = peft.PeftModel.from_pretrained(
        load(base).bfloat16(), str(tmp_path / "adapter")
    ).merge_and_unload()
    ours, theirs = ((logits(m) - adapted).square().mean().sqrt() for m in (merged, peers.float()))
    assert 0 < ours <= 2 * theirs
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()
