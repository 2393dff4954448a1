"""Checkpoints hold every family's weights, whatever they are called on disk; and runs with unusual adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

import luthier
from luthier.errors import Interrupted, ModelError
from luthier.models.compat import plain_attention
from luthier.models.load import load_model
from luthier.runs.folder import RunFolder
from luthier.training.checkpoint import load_checkpoint, save_checkpoint
from luthier.training.loop import Trainer
from tiny_models import build, tiny_gpt2, tiny_llama, tiny_phi3, tiny_smollm
from tiny_runs import tiny_config
from training_parts import make_trainer, trained_weights


def pythia() -> PreTrainedModel:
    """GPT-NeoX: its head has another name on disk."""
    return build("gpt_neox")


def mixtral() -> PreTrainedModel:
    """Experts are stacked in memory and single on disk."""
    return build("mixtral", num_local_experts=2, num_experts_per_tok=1)


@pytest.mark.parametrize("make", [pythia, mixtral, tiny_gpt2, tiny_phi3, tiny_llama, tiny_smollm])
def test_full_fine_tuning_is_restored_bit_for_bit(make: Any, tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path, "run", config_yaml="")
    trainer = make_trainer(model=make(), lora=False, lr=1e-3)
    trainer.step(trainer.source.step(0))
    path = save_checkpoint(trainer, folder, "base")
    assert path is not None
    straight = [trainer.step(trainer.source.step(i)).values["loss"] for i in (1, 2)]
    again = make_trainer(model=make(), lora=False, lr=1e-3)
    load_checkpoint(again, path)
    assert [again.step(again.source.step(i)).values["loss"] for i in (1, 2)] == straight
    one, two = trained_weights(trainer), trained_weights(again)
    assert all(torch.equal(one[name], two[name]) for name in one)


ADAPTERS: list[dict[str, Any]] = [
    {"rank": 4, "target": ["q_proj", "lm_head"], "dropout": 0.1},
    {"rank": 4, "modules_to_save": ["embed_tokens"]},
    {"rank": 4, "target": r".*layers\.1.*(q|v)_proj", "rslora": True},
]


@pytest.mark.parametrize("lora", ADAPTERS)
def test_unusual_adapters_train_stop_resume_answer_and_merge(
    lora: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = {"say": lambda text: None}
    whole = luthier.train(tiny_config(tmp_path, "whole", lora=lora), **quiet)
    original = Trainer.step

    def stop_at_five(self: Trainer, batches: Any) -> Any:
        report = original(self, batches)
        if report.step == 5:
            self.interrupt("test")
        return report

    config = tiny_config(tmp_path, "stopped", lora=lora)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "step", stop_at_five)
        with pytest.raises(Interrupted):
            luthier.train(config, **quiet)
    resumed = luthier.train(config, resume=True, **quiet)
    one, two = (load_file(r.trained / "adapter_model.safetensors") for r in (whole, resumed))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)

    assistant = luthier.load(whole.folder)
    prompt = assistant.prompt_ids("red cat")
    (completion,) = assistant.complete([prompt], max_new_tokens=5)[0]
    assert assistant.logprobs(prompt, completion.ids) == pytest.approx(completion.logp, abs=1e-4)
    merged = AutoModelForCausalLM.from_pretrained(luthier.merge(whole.folder), dtype=torch.float32)
    ids = torch.tensor([prompt])
    with torch.no_grad(), plain_attention(assistant.model):
        torch.testing.assert_close(merged(ids).logits, assistant.model(ids).logits, rtol=1e-5, atol=1e-5)


def test_a_fully_tuned_run_loads_and_has_nothing_to_merge(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "full", lora=..., optim={"lr": 1e-3})
    result = luthier.train(config, say=lambda text: None)
    assert (
        result.trained.name == "model"
        and luthier.load(result.folder).answer("red", max_new_tokens=2) is not None
    )
    with pytest.raises(
        ModelError, match=r"tuned all weights, so there is nothing to merge: .*model is whole"
    ):
        luthier.merge(result.folder)
    assert (
        load_model(result.trained, torch.float32, torch.device("cpu")).config._attn_implementation == "sdpa"
    )


def test_a_revision_is_kept_with_the_adapter(tmp_path: Path) -> None:
    model = {"name": str(tmp_path / "model"), "revision": "abc"}
    result = luthier.train(tiny_config(tmp_path, "revised", model=model), say=lambda text: None)
    assert '"revision": "abc"' in (result.trained / "adapter_config.json").read_text()
