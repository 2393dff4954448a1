"""Law 6: merge(adapter) = adapter, in plain transformers; and what is on disk afterwards is whole or
nothing.
"""

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from lora_models import (
    BUILDERS,
    EMBEDDINGS,
    TIED,
    TOKENS,
    build,
    difference,
    in_peft,
    logits,
    teach,
    teach_peft,
)
from luthier.errors import ModelError, RunError
from luthier.export import merge
from luthier.export.merge import merge_to_folder
from luthier.models.adapter_files import load_adapter, save_adapter
from luthier.models.lora import apply_lora

FIRST = {"gpt2": "c_attn", "phi3": "qkv_proj"}
INDEX = "model.safetensors.index.json"


def adapted(model: Any, folder: Path, family: str = "llama", **settings: Any) -> Any:
    """A trained adapter on `model`, saved to `folder`."""
    apply_lora(model, rank=4, generator=torch.Generator().manual_seed(0), **settings)
    teach(model)
    save_adapter(model, folder, base_name="some/base")
    return model


def plain(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """What transformers makes of a folder, with every weight accounted for."""
    auto: Any = AutoModelForCausalLM
    model, info = auto.from_pretrained(folder, dtype=dtype, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model


def tensors(folder: Path) -> dict[str, Tensor]:
    return {key: value for file in folder.glob("*.safetensors") for key, value in load_file(file).items()}


KINDS = ("all", "rslora", "partial", "head", "embeddings", "norm")


def settings_for(family: str, kind: str) -> dict[str, Any]:
    embeddings = EMBEDDINGS.get(family, "embed_tokens")
    return {
        "all": {},
        "rslora": {"rslora": True, "alpha": 3.0},
        "partial": {"target": [FIRST.get(family, "q_proj"), "lm_head"]},
        "head": {"modules_to_save": ["lm_head"]},
        "embeddings": {"modules_to_save": [embeddings]},
        "norm": {"modules_to_save": ["ln_f" if family == "gpt2" else "norm"]},
    }[kind]


@pytest.mark.parametrize("family", list(BUILDERS))
@pytest.mark.parametrize("kind", KINDS)
def test_merged_is_base_and_adapter(family: str, kind: str, tmp_path: Path) -> None:
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    model = build(family)
    model.save_pretrained(base, max_shard_size="50KB" if kind in ("all", "partial") else "5GB")
    adapted(model, adapter, **settings_for(family, kind))
    merge_to_folder(base, adapter, out)
    assert difference(logits(plain(out)), logits(model)) < 1e-5
    cut = family in TIED and kind == "partial"
    on_disk, before = tensors(out), tensors(base)
    assert on_disk.keys() - before.keys() == ({"lm_head.weight"} if cut else set())
    if cut:
        assert AutoConfig.from_pretrained(out).tie_word_embeddings is False
    else:
        assert (out / "config.json").read_bytes() == (base / "config.json").read_bytes()
        if (base / INDEX).exists():
            assert (out / INDEX).read_bytes() == (base / INDEX).read_bytes()
        peers = in_peft(build(family), adapter).merge_and_unload()
        assert difference(logits(plain(out)), logits(peers)) < 1e-5
    assert {p.name for p in out.glob("*.safetensors")} == {p.name for p in base.glob("*.safetensors")}


def neighbours(wide: Tensor) -> tuple[Tensor, Tensor]:
    """In bfloat16: cut off, and the next one away from zero, or itself where nothing was cut off."""
    bits = wide.float().view(torch.int32)
    inward = bits & ~0xFFFF
    return inward.view(torch.float32), torch.where(bits == inward, bits, inward + 0x10000).view(torch.float32)


@pytest.mark.parametrize("family", ["llama", "smollm", "gpt2"])
def test_only_the_targets_change_and_they_are_rounded_once(family: str, tmp_path: Path) -> None:
    """bf16: W' is one of the two neighbours of W + s·B·A, and the logits are as near the exact ones as those of PEFT's
    merge.
    """
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    build(family).to(torch.bfloat16).save_pretrained(base, max_shard_size="30KB")
    exact = plain(base)
    adapted(exact, adapter)
    merge_to_folder(base, adapter, out)
    before, after = tensors(base), tensors(out)
    assert before.keys() == after.keys()
    updates = {
        f"{name}.weight": module.delta_weight()
        for name, module in exact.named_modules()
        if hasattr(module, "delta_weight")
    }
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == updates.keys()
    for key in before:
        assert after[key].dtype == torch.bfloat16
        expected = before[key].float() + updates[key] if key in updates else before[key]
        inward, outward = neighbours(expected)
        assert ((after[key] == inward) | (after[key] == outward)).all()
    peers = in_peft(plain(base, torch.bfloat16), adapter).merge_and_unload().float()
    ours, theirs = difference(logits(plain(out)), logits(exact)), difference(logits(peers), logits(exact))
    assert 0 < ours <= 2 * theirs
    merge_to_folder(base, adapter, tmp_path / "wide", wide=True)
    for key, weight in tensors(tmp_path / "wide").items():
        exactly = before[key].float() + updates[key] if key in updates else before[key]
        assert weight.dtype == exactly.dtype and torch.equal(weight, exactly)


@pytest.mark.parametrize("family", TIED)
@pytest.mark.parametrize("saved", ["head", "embeddings", "both"])
def test_embeddings_that_peft_took_apart(family: str, saved: str, tmp_path: Path) -> None:
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    build(family).save_pretrained(base, max_shard_size="50KB")
    embeddings = EMBEDDINGS.get(family, "embed_tokens")
    names = {"head": ["lm_head"], "embeddings": [embeddings], "both": [embeddings, "lm_head"]}[saved]
    theirs = peft.get_peft_model(
        build(family), peft.LoraConfig(r=2, target_modules="all-linear", modules_to_save=names)
    )
    teach_peft(theirs)
    theirs.save_pretrained(str(adapter))
    merge_to_folder(base, adapter, out)
    merged = plain(out)
    assert difference(logits(merged), logits(theirs)) < 1e-5
    assert merged.config.tie_word_embeddings is False
    index = json.loads((out / INDEX).read_text())
    assert index["weight_map"].keys() == tensors(out).keys()
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors(out).values())
    for key, shard in index["weight_map"].items():
        with safe_open(out / shard, framework="pt") as file:
            assert key in file.keys()  # noqa: SIM118
            assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("kind", ["all", "partial", "head"])
def test_a_checkpoint_without_the_decoders_prefix(kind: str, tmp_path: Path) -> None:
    """As GPT-2 is published: saved from the bare decoder, the head tied and absent."""
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    model = build("gpt2")
    model.save_pretrained(base)
    renamed = {key.removeprefix("transformer."): value for key, value in tensors(base).items()}
    save_file(renamed, base / "model.safetensors", {"format": "pt"})
    assert "h.0.attn.c_attn.weight" in renamed
    adapted(model, adapter, **settings_for("gpt2", kind))
    merge_to_folder(base, adapter, out)
    assert difference(logits(plain(out)), logits(model)) < 1e-5


def tiny_mixtral() -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        "mixtral", vocab_size=97, hidden_size=32, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
    )  # fmt: skip
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def test_a_checkpoint_whose_names_change_on_loading(tmp_path: Path) -> None:
    """Mixtral's experts are stacked while loading: other weights merge, the stacked ones are refused by
    name.
    """
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    tiny_mixtral().save_pretrained(base)
    assert "model.layers.0.block_sparse_moe.experts.0.w1.weight" in tensors(base)
    model = plain(base)
    adapted(model, adapter)
    merge_to_folder(base, adapter, out)
    assert tensors(out).keys() == tensors(base).keys()
    assert difference(logits(plain(out)), logits(model)) < 1e-5
    adapted(plain(base), tmp_path / "experts", modules_to_save=["mlp"], target=["q_proj"])
    with pytest.raises(ModelError) as error:
        merge_to_folder(base, tmp_path / "experts", tmp_path / "out2")
    assert "no tensor that can take these updates" in str(error.value)
    assert "model.layers.1.mlp.experts.gate_up_proj" in str(error.value)
    assert "model.layers.0.mlp.gate.weight" not in str(error.value)
    assert "merge_adapters" in str(error.value)
    assert not (tmp_path / "out2").exists()


def test_a_renamed_weight_is_found(tmp_path: Path) -> None:
    """The router of Mixtral has another name on disk than in the model."""
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    tiny_mixtral().save_pretrained(base)
    assert "model.layers.0.block_sparse_moe.gate.weight" in tensors(base)
    model = plain(base)
    adapted(model, adapter, modules_to_save=["gate"], target=["q_proj"])
    merge_to_folder(base, adapter, out)
    key = "model.layers.0.block_sparse_moe.gate.weight"
    assert not torch.equal(tensors(out)[key], tensors(base)[key])
    assert difference(logits(plain(out)), logits(model)) < 1e-5


def test_what_describes_the_model_is_copied_and_the_adapters_tokenizer_wins(tmp_path: Path) -> None:
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    model = build("llama")
    model.save_pretrained(base)
    adapted(model, adapter)
    copied = {"generation_config.json": '{"max_length": 7}', "LICENSE": "free", "tokenizer.model": "pieces"}
    stale = {"tokenizer.json": "old", "tokenizer_config.json": "old", "special_tokens_map.json": "old"}
    left = {"pytorch_model.bin": "w", "model.gguf": "w", "optimizer.pt": "w", ".gitattributes": "x"}
    for name, text in {**copied, **stale, **left}.items():
        (base / name).write_text(text)
    (base / "original").mkdir()
    merge_to_folder(base, adapter, out)
    expected = {"config.json", "model.safetensors", *copied, *stale}
    assert {path.name for path in out.iterdir()} == expected
    shutil.rmtree(out)
    own = {"tokenizer.json": "new", "tokenizer_config.json": "new", "chat_template.jinja": "{{ new }}"}
    for name, text in own.items():
        (adapter / name).write_text(text)
    merge_to_folder(base, adapter, out)
    assert {path.name for path in out.iterdir()} == expected - {"special_tokens_map.json"} | set(own)
    for name, text in {**copied, **own}.items():
        assert (out / name).read_text() == text


def left_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Files end after `size` bytes: what a write meets on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    model = build("llama")
    model.save_pretrained(base, max_shard_size="30KB")
    adapted(model, adapter)
    before = left_in(tmp_path)
    with file_limit(14_000), pytest.raises(RunError, match="cannot be written"):
        merge_to_folder(base, adapter, out)
    assert left_in(tmp_path) == before
    usage = shutil.disk_usage(tmp_path)._replace(free=3 * 2**20)
    monkeypatch.setattr(merge.shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(merge, "_size", lambda shards: 5 * 2**20)
    with pytest.raises(RunError, match="needs 5 MiB, but only 3 MiB are free on that disk"):
        merge_to_folder(base, adapter, out)
    assert left_in(tmp_path) == before


def test_what_does_not_fit_is_explained_and_leaves_nothing(tmp_path: Path) -> None:
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    model = build("llama")
    model.save_pretrained(base)
    adapted(model, adapter)

    def refused(match: str, base: Path = base, adapter: Path = adapter, out: Path = out) -> None:
        before = left_in(tmp_path)
        with pytest.raises(ModelError, match=match):
            merge_to_folder(base, adapter, out)
        assert left_in(tmp_path) == before

    refused("exists already. Remove it, or give another folder", out=base)
    refused(r"holds no model: config\.json is missing", base=adapter)
    refused(r"holds no adapter: adapter_config\.json is missing", adapter=base)
    build("qwen3").save_pretrained(tmp_path / "other")
    refused(
        r"unexpected: model\.layers\.0\.self_attn|wrong shape",
        base=tmp_path / "other",
        adapter=wider(tmp_path),
    )
    quantised = shutil.copytree(base, tmp_path / "quantised")
    config = json.loads((base / "config.json").read_text())
    (quantised / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "mxfp4"}})
    )
    refused("holds quantised weights", base=quantised)
    (quantised / "config.json").write_text(
        json.dumps({**config, "quantization_config": {"quant_method": "quip"}})
    )
    refused("stored as 'quip'.*which is not read here", base=quantised)
    (quantised / "config.json").write_text(json.dumps({**config, "model_type": "of_the_future"}))
    refused("transformers cannot build the model in", base=quantised)
    (quantised / "config.json").write_text("{")
    refused(r"config\.json cannot be read", base=quantised)
    broken = shutil.copytree(base, tmp_path / "broken")
    stored = tensors(base)
    key = "model.layers.0.self_attn.q_proj.weight"
    save_file({k: v for k, v in stored.items() if k != key}, broken / "model.safetensors")
    refused(f"no tensor that can take these updates.*{key}", base=broken)
    save_file({**stored, key: stored[key].to(torch.int8)}, broken / "model.safetensors")
    refused(r"is stored as torch\.int8, which cannot take an update exactly", base=broken)
    (broken / "model.safetensors").write_bytes(b"not a tensor")
    refused(r"model\.safetensors cannot be read", base=broken)
    (broken / "model.safetensors").unlink()
    refused(r"lacks weights: model\.safetensors\. Merging reads safetensors; convert", base=broken)
    (broken / INDEX).write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}))
    refused(r"lacks weights: one\.safetensors, two\.safetensors", base=broken)


def wider(tmp_path: Path) -> Path:
    """An adapter of a wider model."""
    adapted(build("llama", hidden_size=64, head_dim=16), tmp_path / "wider")
    return tmp_path / "wider"


def test_the_base_may_be_links_into_a_cache(tmp_path: Path) -> None:
    """As the hub's cache keeps models: the merged folder holds files of its own."""
    blobs, base, out = tmp_path / "blobs", tmp_path / "base", tmp_path / "out"
    model = build("llama")
    model.save_pretrained(blobs)
    base.mkdir()
    for file in blobs.iterdir():
        (base / file.name).symlink_to(file)
    adapted(model, tmp_path / "adapter")
    merge_to_folder(base, tmp_path / "adapter", out)
    assert not any(path.is_symlink() for path in out.iterdir())
    assert difference(logits(plain(out)), logits(model)) < 1e-5


def test_the_base_is_not_touched_and_the_adapter_still_fits(tmp_path: Path) -> None:
    base, adapter, out = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    model = build("smollm")
    model.save_pretrained(base)
    before = {path.name: path.read_bytes() for path in base.iterdir()}
    adapted(model, adapter, modules_to_save=["lm_head"])
    merge_to_folder(base, adapter, out)
    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    again = plain(base)
    load_adapter(again, adapter)
    with torch.no_grad():
        assert difference(again(input_ids=TOKENS).logits, logits(plain(out))) < 1e-5
