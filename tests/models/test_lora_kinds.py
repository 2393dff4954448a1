"""Adapters that are more than one update for each linear layer: biases, embeddings, heads, experts, several at once,
restarts. One table, and for every row of it the same promises.
"""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

import tiny_models
from lora_models import build, difference, logits, teach, teach_peft
from luthier.errors import ModelError
from luthier.export.merge import merge_to_folder
from luthier.models.adapter_files import attach_adapter, attach_beside, load_adapter, save_adapter
from luthier.models.adapter_table import adapter_table
from luthier.models.fused.check import fuse_checked
from luthier.models.lora import (
    adapter_names,
    adapter_parameters,
    adapters,
    adapters_called,
    apply_lora,
    disable_adapters,
    merge_adapters,
)
from luthier.models.lora_beside import add_adapter
from luthier.models.policy import Policy
from luthier.models.tripwire import probe

pytestmark = pytest.mark.filterwarnings("ignore:.*")
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
MODELS: dict[str, Callable[[], Any]] = {
    "qwen2": lambda: tiny_models.build("qwen2", tie_word_embeddings=False),
    "qwen3_moe": lambda: tiny_models.build("qwen3_moe", num_experts=4, **EXPERTS),
    "mixtral": lambda: tiny_models.build("mixtral", num_local_experts=4, num_experts_per_tok=2),
    "deepseek": lambda: tiny_models.build(
        "deepseek_v3", n_routed_experts=4, n_shared_experts=1, n_group=1, topk_group=1, first_k_dense_replace=1,
        q_lora_rank=8, kv_lora_rank=8, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=8, num_key_value_heads=4,
        **EXPERTS,
    ),
    "gpt_oss": lambda: tiny_models.build("gpt_oss", num_local_experts=4, num_experts_per_tok=2),
}  # fmt: skip


class Kind(NamedTuple):
    """A row of the table."""

    family: str
    settings: dict[str, Any]
    beside: Mapping[str, dict[str, Any]] = MappingProxyType({})
    fused: bool = True
    """Whether all layers are."""
    peft: bool = True


ATTENTION = ["q_proj", "o_proj"]
KINDS: dict[str, Kind] = {
    "biases of adapted layers": Kind("qwen2", {"bias": "lora_only"}),
    "biases of some": Kind("qwen2", {"bias": "lora_only", "target": ["q_proj", "down_proj"]}),
    "all biases": Kind("qwen2", {"bias": "all", "target": ["down_proj", "q_proj"]}),
    "all biases, norms too": Kind("gpt2", {"bias": "all"}, fused=False),
    "biases with lengths": Kind("qwen2", {"bias": "lora_only", "dora": True}),
    "biases with a start": Kind("qwen2", {"bias": "lora_only", "init": "pissa"}),
    "embeddings": Kind("llama", {"target": ["embed_tokens", "q_proj"]}),
    "embeddings alone": Kind("llama", {"target": ["embed_tokens"]}),
    "tied embeddings": Kind("smollm", {"target": ["embed_tokens", "v_proj"]}),
    "tied embeddings and head": Kind("smollm", {"target": ["embed_tokens", "lm_head", "v_proj"]}),
    "scaled embeddings": Kind("gemma3", {"target": ["embed_tokens", "q_proj"], "ranks": {"embed_tokens": 3}}),
    "head": Kind("smollm", {"target": ["lm_head", "v_proj"]}),
    "head whole": Kind("llama", {"modules_to_save": ["lm_head"]}),
    "experts, qwen3": Kind("qwen3_moe", {"experts": True, "target": ATTENTION, "ranks": {"gate_up_proj": 2}}),
    "experts, mixtral": Kind("mixtral", {"experts": True, "target": ATTENTION, "rslora": True}),
    "experts, deepseek": Kind("deepseek", {"experts": True, "target": ["o_proj"]}, fused=False),
    "experts, transposed": Kind("gpt_oss", {"experts": True, "target": ATTENTION}, fused=False),
    "two": Kind("llama", {}, {"style": {"rank": 3}}),
    "two on other layers": Kind(
        "llama", {"target": ["q_proj"]}, {"style": {"rank": 3, "target": ["v_proj", "q_proj"]}}
    ),
    "three, one started": Kind(
        "smollm",
        {"init": "pissa"},
        {"style": {"rank": 3, "rslora": True}, "more": {"rank": 2, "layers": [1]}},
    ),
    "two on the head": Kind("smollm", {"target": ["lm_head"]}, {"style": {"rank": 3, "target": ["lm_head"]}}),
    "two beside a whole head": Kind("llama", {"modules_to_save": ["lm_head"]}, {"style": {"rank": 2}}),
    "restarts": Kind("llama", {"restarts": 2}),
}


def base(kind: Kind) -> Any:
    return MODELS[kind.family]() if kind.family in MODELS else build(kind.family)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def adapted(kind: Kind) -> Any:
    model = base(kind)
    apply_lora(model, rank=4, generator=seeded(), **kind.settings)
    for number, (name, settings) in enumerate(kind.beside.items()):
        add_adapter(model, name, generator=seeded(number + 1), **settings)
    return model


def taught(kind: Kind) -> Any:
    model = adapted(kind)
    teach(model)
    if restarts := kind.settings.get("restarts", 0):
        for number in range(restarts):
            for module in adapters_called(model, "").values():
                module.take_in(number, torch.randn(module.lora_A.shape, generator=seeded(number)))
            teach(model, seed=number)
    return model


def in_peft(model: Any, folder: Path) -> PeftModel:
    """All adapters of the folder, as PEFT loads them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*|.*unexpected.*")
        theirs: Any = PeftModel.from_pretrained(model, str(folder))
        names = [path.name for path in sorted(folder.iterdir()) if path.is_dir()]
        for name in names:
            theirs.load_adapter(str(folder / name), name)
    if names:
        theirs.base_model.set_adapter(["default", *names])
    return theirs


@pytest.mark.parametrize("name", KINDS)
def test_it_changes_nothing_before_it_has_learned_or_when_it_is_off(name: str) -> None:
    kind = KINDS[name]
    model, plain = adapted(kind), logits(base(kind))
    assert difference(logits(model), plain) < 1e-5
    teach(model)
    assert difference(logits(model), plain) > 1e-3
    with disable_adapters(model):
        assert torch.equal(logits(model), plain)


@pytest.mark.parametrize("name", KINDS)
def test_peft_and_the_reader_compute_the_same_on_the_original_base(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    model = taught(kind)
    save_adapter(model, tmp_path, base_name="some/base")
    again = base(kind)
    attach_adapter(again, tmp_path)
    assert difference(logits(again), logits(model)) < 1e-5
    assert adapter_names(again) == ["", *kind.beside]
    if kind.peft:
        assert difference(logits(in_peft(base(kind), tmp_path)), logits(model)) < 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_merged_is_adapted_in_memory_and_on_disk(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    base(kind).save_pretrained(tmp_path / "base")
    model = taught(kind)
    save_adapter(model, tmp_path / "adapter", base_name="some/base")
    expected = logits(model)
    merge_adapters(model)
    assert not adapters(model)
    assert difference(logits(model), expected) < 1e-5
    merge_to_folder(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    auto: Any = AutoModelForCausalLM
    merged, info = auto.from_pretrained(tmp_path / "merged", dtype=torch.float32, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert difference(logits(merged), expected) < 1e-5


@pytest.mark.parametrize("name", KINDS)
def test_it_is_read_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    model = taught(kind)
    save_adapter(model, tmp_path, base_name="some/base")
    again = adapted(kind)
    load_adapter(again, tmp_path)
    assert torch.equal(logits(again), logits(model))
    mine, loaded = adapter_parameters(model), adapter_parameters(again)
    assert mine.keys() == loaded.keys()
    assert all(torch.equal(mine[part], loaded[part]) for part in mine)


def gradients(policy: Policy, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
    policy.zero_grad()
    logp_N = policy(batch)
    (logp_N * torch.linspace(0.5, 1.5, len(logp_N))).sum().backward()
    return logp_N.detach(), {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", KINDS)
def test_all_of_it_gets_gradients_fused_as_plain(name: str) -> None:
    kind = KINDS[name]
    model = taught(kind)
    policy, batch = Policy(model, "packed" if kind.fused else "plain"), probe(model)
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert trained == {f"model.{n}" for n in adapter_parameters(model)}
    logp_N, plain = gradients(policy, batch)
    assert plain.keys() == trained
    fusion, line = fuse_checked(policy)
    table = adapter_table(model, fusion, line)
    if kind.fused:
        assert fusion is not None and not fusion.reasons, line
    assert sum(int(row.split("(")[1].split(")")[0]) for row in table) >= len(adapters(model)) - 1
    again_N, fused = gradients(policy, batch)
    torch.testing.assert_close(again_N, logp_N, rtol=1e-4, atol=1e-5)
    assert plain.keys() == fused.keys()
    for part, gradient in plain.items():
        assert (fused[part] - gradient).norm() <= 1e-4 * gradient.norm(), part


@pytest.mark.parametrize("name", KINDS)
def test_it_learns(name: str) -> None:
    model = adapted(KINDS[name])
    ids = torch.tensor([[5, 17, 3, 88, 41, 9, 60, 2]])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        loss = model(input_ids=ids, labels=ids).loss
        losses.append(float(loss))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1


def test_a_restart_changes_nothing_and_begins_anew() -> None:
    model = adapted(KINDS["restarts"])
    teach(model)
    before = logits(model)
    for module in adapters_called(model, "").values():
        module.take_in(1, torch.randn(module.lora_A.shape, generator=seeded()))
        assert not module.lora_B.any()
    assert difference(logits(model), before) < 1e-5


def test_one_that_is_frozen_stays_beside_one_that_is_trained(tmp_path: Path) -> None:
    first = build("llama")
    apply_lora(first, rank=2, generator=seeded(3))
    teach(first)
    save_adapter(first, tmp_path, base_name="some/base")
    model = build("llama")
    apply_lora(model, rank=4, generator=seeded())
    attach_beside(model, "style", tmp_path, trained=False)
    assert difference(logits(model), logits(first)) < 1e-5
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained and not any(".base." in name for name in trained)


@pytest.mark.parametrize(
    ("settings", "beside", "message"),
    [
        ({"bias": "all"}, {}, "has a bias"),
        ({"bias": "lora_only"}, {}, "None of the adapted layers has a bias"),
        ({"target": ["embed_tokens"], "dora": True}, {}, "linear layers only"),
        ({"target": ["norm"]}, {}, "neither a linear layer nor the input embeddings"),
        ({"dora": True}, {"rank": 2}, "lora.dora"),
        ({}, {"rank": 2, "target": ["embed_tokens"]}, "only the first adapter may have it"),
        ({}, {"rank": 2, "target": ["nothing"]}, "no module is named 'nothing'"),
    ],
)
def test_what_cannot_work_is_told(settings: dict[str, Any], beside: dict[str, Any], message: str) -> None:
    model = build("llama")
    with pytest.raises(ModelError, match=message):
        apply_lora(model, rank=4, **settings)
        add_adapter(model, "style", **beside)
    assert len(adapter_names(model)) < 2


def test_another_adapter_in_the_place_of_this_one_is_told(tmp_path: Path) -> None:
    model = build("llama")
    apply_lora(model, rank=2, target=["q_proj"])
    save_adapter(model, tmp_path, base_name="some/base")
    other = build("llama")
    apply_lora(other, rank=4)
    with pytest.raises(ModelError, match=r"another adapter \(rank 2, on \['q_proj'\]\).*lora.start"):
        load_adapter(other, tmp_path)


@pytest.mark.parametrize("embeddings", [False, True])
def test_an_adapter_on_embeddings_that_peft_wrote_is_read(embeddings: bool, tmp_path: Path) -> None:
    config = LoraConfig(target_modules=["embed_tokens", "q_proj"], r=3)
    theirs = get_peft_model(build("llama"), config)
    teach_peft(theirs)
    theirs.save_pretrained(str(tmp_path), save_embedding_layers=embeddings)
    model = build("llama")
    load_adapter(model, tmp_path)
    assert difference(logits(model), logits(theirs)) < 1e-5
