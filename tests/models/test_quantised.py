"""A base in few bits: what is loaded, how it computes, fused and plain, and what its adapters learn."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from luthier.errors import ModelError
from luthier.kernels.quant.int8 import INT8
from luthier.kernels.quant.nf4 import NF4
from luthier.models.decoding.check import check
from luthier.models.fused.check import fuse_checked
from luthier.models.load import load_model
from luthier.models.lora import LoraLinear, adapter_parameters, apply_lora, merge_adapters
from luthier.models.policy import Policy
from luthier.models.quantised.linear import QuantLinear
from luthier.models.quantised.load import Quantisation, num_weights, open_all, quantised, storage_note
from luthier.models.quantised.reader import lazy_tensors
from luthier.models.tripwire import choose_policy, probe
from luthier.models.value_head import Head, load_with_head
from quantised_models import with_adapter
from tiny_models import FAMILIES, tiny_gpt2

CPU = torch.device("cpu")
NF = Quantisation(NF4(), "nf4")


def saved(model: PreTrainedModel, folder: Path, shards: str = "5GB") -> Path:
    model.save_pretrained(folder, max_shard_size=shards)
    return folder


def loaded(folder: Path, how: Quantisation = NF, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    return load_model(folder, dtype, CPU, how)


def opened(folder: Path, how: Quantisation = NF) -> PreTrainedModel:
    """The same model as plain layers with the decoded weights."""
    model = loaded(folder, how)
    open_all(model)
    assert not quantised(model)
    return model


def gradients(model: PreTrainedModel, *, fused: bool) -> tuple[Tensor, dict[str, Tensor], str]:
    """Log-probabilities of the probe, gradients of the adapter, and what was said of fusing."""
    policy: Policy = choose_policy(model).policy
    said = fuse_checked(policy)[1] if fused else ""
    logp_N = policy(probe(model))
    (logp_N * torch.linspace(0.5, 1.5, len(logp_N))).sum().backward()
    found = {name: p.grad for name, p in adapter_parameters(model).items() if p.grad is not None}
    return logp_N.detach(), found, said


@pytest.mark.parametrize("shards", ["5GB", "10KB"])
@pytest.mark.parametrize("family", ["smollm", "qwen3", "gemma2", "phi3"])
def test_what_is_loaded_is_the_model_with_decoded_weights(family: str, shards: str, tmp_path: Path) -> None:
    plain = FAMILIES[family]()
    model = loaded(saved(plain, tmp_path, shards))
    assert set(quantised(model)) == {
        name for name, m in plain.named_modules() if type(m) is nn.Linear and name != "lm_head"
    }
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, plain.get_parameter(name)), name
    for name, module in quantised(model).items():
        weight = plain.get_submodule(name).weight
        assert isinstance(weight, nn.Parameter)
        assert torch.equal(module.weight, NF4().decode(NF4().encode(weight), torch.empty_like(weight)))
        weight.data = module.weight
    ids = torch.arange(1, 20)[None]
    assert torch.equal(model(ids).logits, plain(ids).logits)
    assert num_weights(model) == sum(p.numel() for p in plain.parameters())
    assert not hasattr(model.config, "quantization_config") and model.config.to_json_string()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_gradients_are_those_of_lora_on_the_decoded_base(family: str, fused: bool, tmp_path: Path) -> None:
    folder = saved(FAMILIES[family](), tmp_path)
    how = Quantisation(
        NF4(), "nf4", skip=() if family == "llama" else ("0.mlp.down_proj", "1.self_attn.o_proj")
    )
    logp_N, ours, said = gradients(with_adapter(loaded(folder, how)), fused=fused)
    expected_N, theirs, _ = gradients(with_adapter(opened(folder, how)), fused=fused)
    assert not fused or said.startswith("2 of 2 layers fused"), said
    torch.testing.assert_close(logp_N, expected_N, rtol=1e-6, atol=1e-6)
    assert set(ours) == set(theirs) and len(ours) >= 8
    for name, gradient in ours.items():
        assert (gradient - theirs[name]).norm() <= 1e-6 * theirs[name].norm(), name


def test_layers_share_one_buffer_of_decoded_weights(tmp_path: Path) -> None:
    model = with_adapter(loaded(saved(FAMILIES["llama"](), tmp_path)))
    fusion, _ = fuse_checked(choose_policy(model).policy)
    assert fusion is not None
    buffers = [b for (name, *_), b in fusion.workspace._buffers.items() if name == "weights"]
    most = max(
        (one.num_out + one.spare) * (one.num_in + one.spare)
        for layer in fusion.layers
        for one in layer._linears()
    )
    assert [buffer.numel() for buffer in buffers] == [most]
    fusion.release()
    assert all(isinstance(m.base, QuantLinear) for m in model.modules() if isinstance(m, LoraLinear))


def test_an_update_between_two_passes_is_seen(tmp_path: Path) -> None:
    """The last group of a backward pass is the first of the next forward pass; its masters have moved meanwhile."""
    folder = saved(FAMILIES["llama"](), tmp_path)
    found = []
    for fused in (False, True):
        model = with_adapter(loaded(folder))
        gradients(model, fused=fused)
        with torch.no_grad():
            for parameter in adapter_parameters(model).values():
                parameter.add_(0.05)
        policy = Policy(model)
        found.append(policy(probe(model)).detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["smollm", "qwen3", "phi3"])
def test_answers_are_made_layer_by_layer(family: str, tmp_path: Path) -> None:
    """`check` compares with the plain model's logits."""
    model = with_adapter(loaded(saved(FAMILIES[family](), tmp_path)))
    assert check(model).shape is not None, check(model).reason


def test_merging_opens_the_stored_layers(tmp_path: Path) -> None:
    model = with_adapter(loaded(saved(FAMILIES["smollm"](), tmp_path)))
    ids = torch.arange(1, 20)[None]
    before = model(ids).logits
    merge_adapters(model)
    assert not quantised(model)
    torch.testing.assert_close(model(ids).logits, before, rtol=1e-4, atol=1e-5)


def test_types_of_parts_survive_a_change_of_precision(tmp_path: Path) -> None:
    model = loaded(saved(FAMILIES["llama"](), tmp_path))
    module = next(iter(quantised(model).values()))
    before, kinds = module.weight, {n: b.dtype for n, b in module.named_buffers()}
    model.double()
    assert {n: b.dtype for n, b in module.named_buffers()} == kinds and torch.equal(module.weight, before)


def test_what_stays_is_named_and_what_cannot_be_is_refused(tmp_path: Path) -> None:
    folder = saved(FAMILIES["llama"](), tmp_path / "llama")
    model = loaded(folder, Quantisation(INT8(), "int8", skip=("down_proj", "layers.0"), whole=("lm_head",)))
    assert set(quantised(model)) == {
        f"model.layers.1.{name}"
        for name in (*(f"self_attn.{p}_proj" for p in "qkvo"), "mlp.gate_proj", "mlp.up_proj")
    }
    said = storage_note(model, "int8")
    assert said.startswith("int8: ") and " of 6 linear layers in " in said
    with pytest.raises(ModelError, match=r"quant\.skip: no module is named nose\. Linear layers: down_proj"):
        loaded(folder, Quantisation(NF4(), "nf4", skip=("nose",)))
    with pytest.raises(
        ModelError, match=r"lora\.modules_to_save: .*q_proj is stored in few bits.*quant\.skip"
    ):
        apply_lora(loaded(folder), rank=2, modules_to_save=["q_proj"])
    with pytest.raises(ModelError, match="nf4 stores no layer of this model"):
        loaded(saved(tiny_gpt2(), tmp_path / "gpt2"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"quantised already.*Leave out the section quant"):
        loaded(folder)


def test_a_head_that_scores_stays(tmp_path: Path) -> None:
    folder = saved(FAMILIES["llama"](), tmp_path)
    head = Head("score", ("a", "b"), "single_label_classification")
    model = load_with_head(folder, torch.float32, CPU, head, pad_token_id=0, quantisation=NF)
    plain = load_with_head(folder, torch.float32, CPU, head, pad_token_id=0)
    assert len(quantised(model)) == 14
    assert torch.equal(model.get_parameter("score.weight"), plain.get_parameter("score.weight"))


def test_tensors_are_read_one_by_one_and_damage_is_told(tmp_path: Path) -> None:
    model = FAMILIES["llama"]().bfloat16()
    folder = saved(model, tmp_path)
    lazy = lazy_tensors(folder)
    assert lazy is not None
    for name, tensor in AutoModelForCausalLM.from_pretrained(folder).state_dict().items():
        assert torch.equal(lazy[name][...], tensor) and lazy[name].get_shape() == list(tensor.shape)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="shorter than its header says"):
        loaded(folder)
    file.write_bytes(b"no header")
    with pytest.raises(ModelError, match="cannot be read"):
        loaded(folder)
    file.unlink()
    assert lazy_tensors(folder) is None
