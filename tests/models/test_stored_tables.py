"""Embeddings and heads in few bits: what is stored, what they give, what adapters learn beside them, what cannot be."""

import pkgutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import luthier.kernels.quant
from luthier.config.plugins import load_plugin
from luthier.errors import ModelError
from luthier.kernels.decoded_head import DecodedHead
from luthier.kernels.quant.base import store
from luthier.kernels.quant.int8 import INT8
from luthier.kernels.quant.nf4 import NF4
from luthier.models.decoding.check import check
from luthier.models.fused.check import fuse_checked
from luthier.models.load import load_model
from luthier.models.lora import adapter_parameters, apply_lora, merge_adapters
from luthier.models.quantised.embeddings import StoredEmbedding, StoredHead
from luthier.models.quantised.load import Quantisation, num_weights, open_all, quantised, storage_note
from luthier.models.quantised.tables import stored_tables, table_weights
from luthier.models.token_rows import TokenRows
from luthier.models.tripwire import choose_policy, probe
from luthier.models.value_head import Head, load_with_head
from quantised_models import with_adapter
from tiny_models import FAMILIES

CPU = torch.device("cpu")
HOW = Quantisation(NF4(block=32), "nf4", tables=NF4(block=32), tables_name="nf4")
IDS = torch.arange(1, 20)[None]
SCHEMES = sorted(
    m.name
    for m in pkgutil.iter_modules(luthier.kernels.quant.__path__)
    if m.name != "base" and not m.name.startswith("_")
)


def saved(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def loaded(folder: Path, how: Quantisation = HOW) -> PreTrainedModel:
    return load_model(folder, torch.float32, CPU, how)


def opened(folder: Path, how: Quantisation = HOW) -> PreTrainedModel:
    model = loaded(folder, how)
    open_all(model)
    assert not quantised(model) and not stored_tables(model)
    return model


def gradients(model: PreTrainedModel, *, fused: bool) -> tuple[Tensor, dict[str, Tensor], str]:
    choice = choose_policy(model)
    said = fuse_checked(choice.policy)[1] if fused else ""
    logp_N = choice.policy(probe(model))
    (logp_N * torch.linspace(0.5, 1.5, len(logp_N))).sum().backward()
    found = {name: p.grad for name, p in adapter_parameters(model).items() if p.grad is not None}
    return logp_N.detach(), found, said + choice.policy.layout


def weight_of(module: Any) -> Tensor:
    return module.weight.detach()


@pytest.mark.parametrize("family", ["smollm", "llama", "gemma2"])
def test_what_is_loaded_is_the_model_with_decoded_tables(family: str, tmp_path: Path) -> None:
    plain = FAMILIES[family]()
    embedding, head = plain.get_input_embeddings(), plain.get_output_embeddings()
    tied = weight_of(embedding) is weight_of(head) or torch.equal(weight_of(embedding), weight_of(head))
    model = loaded(saved(plain, tmp_path))
    kinds = {name: type(module) for name, module in stored_tables(model).items()}
    assert kinds == {"model.embed_tokens": StoredEmbedding, "lm_head": StoredHead}
    assert len(table_weights(model)) == (1 if tied else 2), "what is shared is stored once"
    for module in (embedding, head):
        decoded = store(NF4(block=32), weight_of(module)).weight()
        with torch.no_grad():
            module.weight.copy_(decoded) if not tied or module is head else None
    for name, module in quantised(model).items():
        plain.get_submodule(name).weight.data = module.weight  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(model(IDS).logits, plain(IDS).logits, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.get_input_embeddings()(IDS), embedding(IDS))
    assert num_weights(model) == sum(p.numel() for p in plain.parameters())
    assert next(model.parameters()).dtype == model.dtype == torch.float32


@pytest.mark.parametrize(
    ("family", "fused"), [*((name, True) for name in sorted(FAMILIES)), ("gemma3", False)]
)
def test_gradients_are_those_of_lora_on_the_decoded_model(family: str, fused: bool, tmp_path: Path) -> None:
    folder = saved(FAMILIES[family](), tmp_path)
    logp_N, ours, said = gradients(with_adapter(loaded(folder)), fused=fused)
    expected_N, theirs, other = gradients(with_adapter(opened(folder)), fused=fused)
    assert said == other and said.endswith("packed")
    torch.testing.assert_close(logp_N, expected_N, rtol=1e-6, atol=1e-6)
    assert set(ours) == set(theirs) and len(ours) >= 8
    for name, gradient in ours.items():
        assert (gradient - theirs[name]).norm() <= 1e-6 * theirs[name].norm(), name


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_stores_tables(name: str, tmp_path: Path) -> None:
    how = load_plugin(luthier.kernels.quant, name)()
    model = FAMILIES["llama"](hidden_size=128)
    folder = saved(model, tmp_path)
    chosen = Quantisation(INT8(), "int8", tables=how, tables_name=name)
    found, expected = (gradients(with_adapter(make(folder, chosen)), fused=True) for make in (loaded, opened))
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    said = storage_note(loaded(folder, chosen), "int8")
    assert said.startswith("int8: ") and "; embeddings and head: " in said


@pytest.mark.parametrize("family", ["smollm", "qwen3", "gemma2"])
def test_answers_are_made_block_by_block(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.kernels.decoded_head.BLOCK_BYTES", 1)
    model = with_adapter(loaded(saved(FAMILIES[family](vocab_size=300), tmp_path)))
    assert check(model).shape is not None, check(model).reason


def test_merging_leaves_tables_and_opening_makes_one_model_again(tmp_path: Path) -> None:
    model = with_adapter(loaded(saved(FAMILIES["smollm"](), tmp_path)))
    before = model(IDS).logits
    merge_adapters(model)
    open_all(model)
    torch.testing.assert_close(model(IDS).logits, before, rtol=1e-4, atol=1e-5)
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert type(embedding) is nn.Embedding and type(head) is nn.Linear and embedding.weight is head.weight


def test_tables_move_as_one_and_keep_their_types(tmp_path: Path) -> None:
    model = loaded(saved(FAMILIES["smollm"](), tmp_path))
    (table,) = table_weights(model)
    before, kinds = table.weight, {n: b.dtype for n, b in table.named_buffers()}
    model.double()
    assert {n: b.dtype for n, b in table.named_buffers()} == kinds and torch.equal(table.weight, before)
    head = model.get_output_embeddings()
    assert isinstance(head, StoredHead) and isinstance(head.decoded, DecodedHead)
    assert head.decoded.stored is table.stored, "what is moved is moved for both"


def test_what_is_trained_whole_stays_and_so_does_what_it_shares(tmp_path: Path) -> None:
    tied, apart = (saved(FAMILIES[f](), tmp_path / f) for f in ("smollm", "llama"))
    model = loaded(apart, replace(HOW, whole=("lm_head",)))
    assert list(stored_tables(model)) == ["model.embed_tokens"]
    apply_lora(model, rank=2, modules_to_save=["lm_head"])
    gradients(model, fused=True)
    assert list(stored_tables(loaded(apart, replace(HOW, skip=("embed_tokens",))))) == ["lm_head"]
    with pytest.raises(
        ModelError, match=r"quant\.embeddings is nf4, but the embeddings and the head .* all stay"
    ):
        loaded(tied, replace(HOW, whole=("lm_head",)))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    folder = saved(FAMILIES["smollm"](), tmp_path)
    with pytest.raises(ModelError, match=r"rows of \d+ weights.*no whole blocks of 64.*Choose another"):
        loaded(folder, replace(HOW, tables=NF4()))
    model = loaded(folder)
    for target in (["q_proj", "lm_head"], ["embed_tokens"], "lm_head"):
        with pytest.raises(ModelError, match=r"lora\.target: .* stored in few bits \(quant\.embeddings\)"):
            apply_lora(model, rank=2, target=target)
    with pytest.raises(ModelError, match=r"modules_to_save: .* stored in few bits.*quant\.skip"):
        apply_lora(model, rank=2, modules_to_save=["lm_head"])
    for name in ("lm_head", "model.embed_tokens"):
        with pytest.raises(ModelError, match=r"stored in few bits \(quant\.embeddings\)"):
            TokenRows(model.get_submodule(name), [3])


def test_a_head_that_scores_stays_beside_stored_embeddings(tmp_path: Path) -> None:
    head = Head("score", ("a", "b"), "single_label_classification")
    folder = saved(FAMILIES["llama"](), tmp_path)
    model = load_with_head(folder, torch.float32, CPU, head, pad_token_id=0, quantisation=HOW)
    assert list(stored_tables(model)) == ["model.embed_tokens"]
    assert isinstance(model.get_submodule("score"), nn.Linear)
