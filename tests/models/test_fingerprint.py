"""The mark of a base model: other weights have another, whatever files they lie in."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from luthier.errors import ModelError
from luthier.models.fingerprint import FILE, check_base, fingerprint, mark_base
from tiny_models import build


def test_other_weights_have_another_mark_and_other_files_the_same(tmp_path: Path) -> None:
    model = build("llama")
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="30KB")
    assert len([*(tmp_path / "many").glob("*.safetensors")]) > 2
    mark = fingerprint(tmp_path / "one")
    assert mark is not None and mark == fingerprint(tmp_path / "many")
    tensors = load_file(tmp_path / "one" / "model.safetensors")
    (tmp_path / "other").mkdir()
    for change in (
        {"model.norm.weight": tensors["model.norm.weight"] + 1},
        {"model.norm.weight": tensors["model.norm.weight"].to(torch.bfloat16)},
        {"model.norm2.weight": tensors["model.norm.weight"].clone()},
    ):
        save_file({**tensors, **change}, tmp_path / "other" / "model.safetensors")
        assert fingerprint(tmp_path / "other") != mark
    assert fingerprint(tmp_path) is None


def test_an_adapter_keeps_to_its_base(tmp_path: Path) -> None:
    base, other, adapter = (tmp_path / name for name in ("base", "other", "adapter"))
    build("llama").save_pretrained(base)
    build("llama", seed=3).save_pretrained(other)
    adapter.mkdir()
    check_base(adapter, other)
    mark_base(adapter, base, "some/base")
    assert json.loads((adapter / FILE).read_text())["model"] == "some/base"
    check_base(adapter, base)
    with pytest.raises(ModelError, match=r"other weights than those that .* was trained on \(some/base\)"):
        check_base(adapter, other)
    (adapter / FILE).write_text("[]")
    with pytest.raises(ModelError, match=r"base\.json cannot be read"):
        check_base(adapter, base)
