"""A GGUF file trained beside as it is: its blocks stay, what they decode to is what unpacking gives."""

from pathlib import Path

import pytest
import torch
from torch import nn

from luthier.errors import ModelError
from luthier.models import gguf_packed
from luthier.models.gguf_packed import pack_gguf
from luthier.models.load import load_model
from luthier.models.quantised.load import quantised
from luthier.models.quantised.reader import lazy_tensors
from luthier.models.quantised.unpack import stored_as, unpacked
from tiny_models import tiny_llama

gguf = pytest.importorskip("gguf")
CPU = torch.device("cpu")
HEADS, SIZE = 4, 64


def written(folder: Path, kind: str) -> tuple[Path, Path]:
    """A GGUF file, its tensors named and its rows ordered as llama.cpp has them, and the unpacked model as a folder."""
    model = tiny_llama(hidden_size=SIZE, intermediate_size=128, head_dim=16, num_key_value_heads=HEADS)
    model.bfloat16()
    types = gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name == "lm_head":
            continue
        weight = module.weight.detach().float()
        if name.endswith(("q_proj", "k_proj")):
            weight = weight.unflatten(0, (HEADS, 2, -1)).transpose(1, 2).flatten(0, 2)
        which = types.Q8_0 if "down_proj" in name else types[kind]
        data = gguf.quantize(weight.numpy(), which)
        writer.add_tensor(f"blk.{name}.weight", data, raw_dtype=which)
        decoded = torch.from_numpy(gguf.dequantize(data, which).copy())
        if name.endswith(("q_proj", "k_proj")):
            decoded = decoded.unflatten(0, (HEADS, -1, 2)).transpose(1, 2).flatten(0, 2)
        module.weight.data.copy_(decoded)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.save_pretrained(folder / "plain")
    return folder / "tiny.gguf", folder / "plain"


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q5_0", "Q8_0"])
def test_its_blocks_stay_and_decode_to_the_unpacked_model(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, plain = written(tmp_path, kind)
    monkeypatch.setattr(gguf_packed, "convert_gguf", lambda given: plain)
    folder = pack_gguf(file)
    assert pack_gguf(file) == folder and stored_as(folder).startswith("gguf Q")
    model, expected = (load_model(where, torch.bfloat16, CPU) for where in (folder, plain))
    layers = quantised(model)
    assert len(layers) == 14 and not quantised(expected)
    for name, module in layers.items():
        assert torch.equal(module.weight, expected.get_parameter(f"{name}.weight")), name
        assert module.stored.num_bytes < 1.1 * module.weight.numel()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected.get_parameter(name)), name
    again = lazy_tensors(unpacked(folder))
    assert again is not None
    for name, tensor in expected.state_dict().items():
        assert torch.equal(again[name][...], tensor), name


def test_a_file_without_few_bits_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("a.weight", torch.zeros(4, 32).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    monkeypatch.setattr(gguf_packed, "convert_gguf", lambda given: tmp_path)
    with pytest.raises(ModelError, match=r"no weights in few bits.*model\.unpack"):
        pack_gguf(tmp_path / "x.gguf")
