"""DoRA here is DoRA in PEFT: files both ways, outputs, gradients; and what is merged on disk is what was trained."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from lora_models import TOKENS, build, difference, in_peft, logits, teach, teach_peft
from luthier.export.merge import merge_to_folder
from luthier.models.adapter_files import attach_adapter, save_adapter
from luthier.models.lora import LoraLinear, adapters, apply_lora

pytestmark = pytest.mark.filterwarnings("ignore:fan_in_fan_out is set.*")


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen3"])
def test_written_by_peft_with_its_gradients(family: str, tmp_path: Path) -> None:
    targets = ["c_attn", "c_fc"] if family == "gpt2" else ["q_proj", "down_proj"]
    theirs: Any = peft.get_peft_model(
        build(family),
        peft.LoraConfig(
            r=4, lora_alpha=12, use_dora=True, target_modules=targets, fan_in_fan_out=family == "gpt2"
        ),
    )
    teach_peft(theirs)
    theirs.save_pretrained(str(tmp_path))
    mine = build(family)
    attach_adapter(mine, tmp_path)
    assert difference(logits(mine), logits(theirs)) < 1e-5
    for model in (mine, theirs):
        model(input_ids=TOKENS, labels=TOKENS).loss.backward()
    peers = dict(theirs.base_model.model.named_modules())
    for name, module in adapters(mine).items():
        assert isinstance(module, LoraLinear) and module.lora_magnitude is not None
        peer: Any = peers[name]
        for ours, other in (
            (module.lora_A, peer.lora_A["default"].weight),
            (module.lora_B, peer.lora_B["default"].weight),
            (module.lora_magnitude, peer.lora_magnitude_vector["default"].weight),
        ):
            assert ours.grad is not None
            torch.testing.assert_close(ours.grad, other.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{"dora": True}, {"dora": True, "init": "pissa", "rslora": True}, {"init": "olora"}]
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merged_on_disk_is_adapted(settings: dict[str, Any], family: str, tmp_path: Path) -> None:
    model = build(family)
    model.save_pretrained(tmp_path / "base")
    apply_lora(model, rank=4, **settings)
    teach(model)
    save_adapter(model, tmp_path / "adapter", base_name="some/base")
    merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert difference(logits(merged), logits(model)) < 1e-5
    assert difference(logits(in_peft(build(family), tmp_path / "adapter")), logits(model)) < 1e-5
