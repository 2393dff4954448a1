"""Models that others stored in few bits: read as their formats say, to the bit, and trained beside as they are."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from luthier.errors import ModelError
from luthier.kernels.packed.bits import apart, as_bytes, joined
from luthier.models.fused.check import fuse_checked
from luthier.models.load import load_model
from luthier.models.lora import LoraLinear, adapter_parameters, apply_lora
from luthier.models.quantised.formats import modules
from luthier.models.quantised.load import open_all, quantised, storage_note
from luthier.models.quantised.packed import packed_model
from luthier.models.quantised.unpack import plain_beside, stored_as, unpacked
from luthier.models.tripwire import choose_policy, probe
from packed_models import SAMPLES, SIZES, rows_of_words, store_as
from tiny_models import tiny_llama

CPU = torch.device("cpu")
SOME = ["gptq 4 by activation", "gptq 3 zeros", "awq", "fp8", "bitsandbytes nf4 double=True"]


def made(folder: Path, sample: str) -> tuple[Path, dict[str, Tensor]]:
    if sample.startswith("bitsandbytes"):
        pytest.importorskip("bitsandbytes")
    tiny_llama(**SIZES).save_pretrained(folder)
    return folder, store_as(folder, sample)


def test_every_format_has_a_sample() -> None:
    assert {sample.partition(" ")[0] for sample in SAMPLES} >= set(modules()) - {"gguf"}


@pytest.mark.parametrize("sample", SAMPLES)
def test_weights_are_those_of_the_format_to_the_bit(sample: str, tmp_path: Path) -> None:
    folder, expected = made(tmp_path / "model", sample)
    model = load_model(folder, torch.float32, CPU)
    stored = quantised(model)
    assert set(stored) == set(expected) and len(stored) == 14
    for name, module in stored.items():
        exact = expected[name]
        assert torch.equal(module.weight.to(exact.dtype), exact), name
        assert torch.equal(module.stored.write(torch.empty_like(exact)), exact), name
    plain = load_file(folder / "model.safetensors")
    assert torch.equal(model.get_parameter("model.norm.weight"), plain["model.norm.weight"])
    assert stored_as(folder) in storage_note(model, stored_as(folder))
    assert not hasattr(model.config, "quantization_config") and model.config.to_json_string()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("sample", SOME)
def test_adapters_learn_as_on_the_decoded_base(sample: str, fused: bool, tmp_path: Path) -> None:
    folder, _ = made(tmp_path / "model", sample)
    found = []
    for opened in (False, True):
        model = load_model(folder, torch.float32, CPU)
        if opened:
            open_all(model)
        apply_lora(model, rank=4, generator=torch.Generator().manual_seed(0))
        draw = torch.Generator().manual_seed(1)
        for module in model.modules():
            if isinstance(module, LoraLinear):
                module.lora_B.data.normal_(0, 0.02, generator=draw)
        policy = choose_policy(model).policy
        assert not fused or fuse_checked(policy)[1].startswith("2 of 2 layers fused")
        logp_N = policy(probe(model))
        (logp_N * torch.linspace(0.5, 1.5, len(logp_N))).sum().backward()
        found.append({name: p.grad for name, p in adapter_parameters(model).items()})
    ours, theirs = found
    for name, gradient in ours.items():
        other = theirs[name]
        assert gradient is not None and other is not None
        assert (gradient - other).norm() <= 1e-6 * other.norm(), name


@pytest.mark.parametrize("sample", SOME)
def test_unpacking_writes_the_decoded_model(
    sample: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("luthier.models.quantised.shards.SHARD", 20_000)
    folder, expected = made(tmp_path / "model", sample)
    plain = unpacked(folder)
    assert unpacked(folder) == plain and unpacked(plain) == plain and not stored_as(plain)
    assert len(list(plain.glob("*.safetensors"))) > 1
    model = load_model(plain, torch.float32, CPU)
    assert not quantised(model)
    for name, weight in expected.items():
        assert torch.equal(model.get_parameter(f"{name}.weight").to(weight.dtype), weight), name
    with plain_beside(folder, tmp_path / "new" / "out") as beside:
        assert (beside / "config.json").is_file()
    assert not list((tmp_path / "new").iterdir())


def test_what_is_no_linear_layer_is_decoded(tmp_path: Path) -> None:
    """A stored head and stored embeddings are read by others than linear layers."""
    folder, expected = made(tmp_path / "model", "awq")
    tensors = load_file(folder / "model.safetensors")
    parts, decoded = SAMPLES["awq"][1](torch.randn(96, 32, generator=torch.Generator().manual_seed(0)))
    del tensors["model.embed_tokens.weight"]
    tensors |= {f"model.embed_tokens.{short}": part for short, part in parts.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 96}))
    model = load_model(folder, torch.float32, CPU)
    assert set(quantised(model)) == set(expected)
    assert torch.equal(model.get_parameter("model.embed_tokens.weight").half(), decoded)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quant_method": "quip"}, r"stored as 'quip'.*not read here.*awq.*gptq"),
        ({"quant_method": "gptq", "bits": 5}, "gptq of 5 bits"),
        ({"quant_method": "gptq", "checkpoint_format": "marlin"}, "format 'marlin'"),
        ({"quant_method": "awq", "version": "gemv"}, "layout 'gemv'"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, "nvfp4-pack-quantized"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "e5m2"),
        ({"quant_method": "fp8", "weight_block_size": [1, 128]}, r"blocks of \[1, 128\]"),
        ({"quant_method": "fp8"}, "hold no such weight"),
    ],
)
def test_what_cannot_be_read_is_named(change: dict[str, object], said: str, tmp_path: Path) -> None:
    folder, _ = made(tmp_path / "model", "awq")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": change}))
    with pytest.raises(ModelError, match=said):
        packed_model(folder)


@pytest.mark.parametrize(
    ("sample", "part", "said"),
    [
        ("gptq 4 zeros", "scales", "lacks the tensor .*q_proj.scales"),
        ("awq", "qzeros", "lacks the tensor .*qzeros"),
    ],
)
def test_missing_tensors_are_named(sample: str, part: str, said: str, tmp_path: Path) -> None:
    folder, _ = made(tmp_path / "model", sample)
    tensors = load_file(folder / "model.safetensors")
    del tensors[f"model.layers.0.self_attn.q_proj.{part}"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=said):
        load_model(folder, torch.float32, CPU)


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_come_apart_again(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (5, 64), generator=torch.Generator().manual_seed(bits))
    found = joined(codes, bits)
    assert torch.equal(found, as_bytes(rows_of_words(codes, bits)))
    assert torch.equal(apart(found, bits), codes.to(torch.uint8))
