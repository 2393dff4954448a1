"""Merging holds one tensor at a time, whatever the shards are; and files that are streamed are safetensors."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from lora_models import build, teach
from luthier.export import merge
from luthier.export.merge import merge_to_folder
from luthier.export.streamed import NAMES, Planned, write_streamed
from luthier.models.adapter_files import save_adapter
from luthier.models.lora import apply_lora


def adapted(model: Any, folder: Path, **settings: Any) -> None:
    """A trained adapter on `model`, saved to `folder`."""
    apply_lora(model, rank=4, **settings)
    teach(model)
    save_adapter(model, folder, base_name="some/base")


def tensors(folder: Path) -> dict[str, Tensor]:
    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


def test_one_tensor_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No tensor that was written is alive when the next is made; progress is told after each shard."""
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    model = build("llama")
    model.save_pretrained(base, max_shard_size="30KB")
    adapted(model, adapter)
    alive: list[weakref.ref[Tensor]] = []
    told = []
    write = merge.write_streamed

    def watched(path: Path, planned: Any, tensor_of: Any, metadata: Any) -> None:
        def counted(name: str) -> Tensor:
            assert not [reference for reference in alive if reference() is not None]
            tensor = tensor_of(name)
            alive.append(weakref.ref(tensor))
            return tensor

        write(path, planned, counted, metadata)

    monkeypatch.setattr(merge, "write_streamed", watched)
    merge_to_folder(base, adapter, out, progress=lambda done, total, name: told.append((done, total, name)))
    shards = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(shards) > 3
    assert len(alive) == len(tensors(base))
    assert told == [(i + 1, len(shards), name) for i, name in enumerate(shards)]


def own_memory() -> int:
    """Bytes of this process that are no file's."""
    text = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in text.splitlines() if line.startswith("RssAnon")))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells the memory of a process")
def test_memory_stays_far_below_a_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One shard of 176 MB, its largest tensor of 4 MB, in bf16: the peak is what the sum of one takes in fp32, and
    what the allocator keeps."""
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    model = build("llama", hidden_size=512, intermediate_size=4096, num_hidden_layers=14, head_dim=128)
    model.to(torch.bfloat16).save_pretrained(base)
    adapted(model, adapter, target=["gate_proj", "up_proj", "down_proj"])
    del model
    (shard,) = base.glob("*.safetensors")
    largest = max(tensor.nbytes for tensor in tensors(base).values())
    assert shard.stat().st_size > 40 * largest
    peak, change = [0], merge._changed

    def watched(*given: Any, **named: Any) -> Tensor:
        made = change(*given, **named)
        peak[0] = max(peak[0], own_memory())
        return made

    monkeypatch.setattr(merge, "_changed", watched)
    gc.collect()
    before = own_memory()
    merge_to_folder(base, adapter, out)
    assert peak[0] > 0 and peak[0] - before < 10 * largest < shard.stat().st_size / 4


def test_a_streamed_file_is_read_by_safetensors(tmp_path: Path) -> None:
    """Every type, a tensor without numbers, one without dimensions, and metadata."""
    torch.manual_seed(0)
    made = {
        f"of.{name}": (10 * torch.randn(3, 5)).to(dtype) for dtype, name in NAMES.items() if name != "F8_E8M0"
    }
    made |= {
        "empty": torch.zeros(0, 4),
        "single": torch.tensor(3.5),
        "turned": torch.arange(6.0).view(2, 3).T,
    }
    planned = [Planned(name, one.dtype, tuple(one.shape)) for name, one in made.items()]
    write_streamed(tmp_path / "model.safetensors", planned, made.__getitem__, {"format": "pt"})
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == made.keys()
    for name, tensor in made.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(
            found[name].contiguous().view(-1).view(torch.uint8),
            tensor.contiguous().view(-1).view(torch.uint8),
        )
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
