"""Adapters on disk: what is written here means the same in PEFT, what PEFT wrote means the same here."""

import json
import resource
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_models import BUILDERS, EMBEDDINGS, TIED, build, difference, in_peft, logits, teach, teach_peft
from luthier.errors import ModelError, RunError
from luthier.models.adapter_files import attach_adapter, load_adapter, save_adapter
from luthier.models.lora import LoraLinear, adapter_parameters, adapters, apply_lora, disable_adapters

# PEFT tells of patterns that mean nothing in a family and of the layout that it finds out for itself.
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*pattern keys did not match.*",
    "ignore:fan_in_fan_out is set.*",
    "ignore:.*ensure_weight_tying.*",
)

FIRST = {"gpt2": "c_attn", "phi3": "qkv_proj"}
SETTINGS: dict[str, dict[str, Any]] = {
    "all": {},
    "rslora": {"rslora": True, "alpha": 3.5, "dropout": 0.1},
    "regex": {"target": r".*\.0\..*(proj|c_attn|c_fc)"},
    "partial": {"target": ["{first}", "lm_head"]},
    "head": {"modules_to_save": ["lm_head"]},
    "embeddings": {"modules_to_save": ["{embeddings}"]},
    "both": {"modules_to_save": ["{embeddings}", "lm_head"]},
    "norm": {"modules_to_save": ["{norm}"]},
}


def settings_for(family: str, kind: str) -> dict[str, Any]:
    names = {
        "first": FIRST.get(family, "q_proj"),
        "embeddings": EMBEDDINGS.get(family, "embed_tokens"),
        "norm": "ln_f" if family == "gpt2" else "norm",
    }

    def fill(value: Any) -> Any:
        return [item.format(**names) for item in value] if isinstance(value, list) else value

    return {key: fill(value) for key, value in SETTINGS[kind].items()}


def taught(family: str, kind: str = "all", **more: Any) -> Any:
    model = build(family)
    apply_lora(
        model, rank=4, generator=torch.Generator().manual_seed(0), **settings_for(family, kind), **more
    )
    teach(model)
    return model


@pytest.mark.parametrize("family", list(BUILDERS))
@pytest.mark.parametrize("kind", list(SETTINGS))
def test_written_here_read_by_peft_and_here(family: str, kind: str, tmp_path: Path) -> None:
    model = taught(family, kind)
    save_adapter(model, tmp_path, base_name="some/base")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*missing adapter keys.*|.*unexpected.*")
        theirs = in_peft(build(family), tmp_path)
    expected = logits(model)
    assert difference(logits(theirs), expected) < 1e-5
    again = build(family)
    found = load_adapter(again, tmp_path)
    assert difference(logits(again), expected) < 1e-6
    assert {p for p, m in adapters(model).items()} == {*found.targets, *found.saved}
    mine, loaded = adapter_parameters(model), adapter_parameters(again)
    assert mine.keys() == loaded.keys()
    assert all(torch.equal(mine[key], loaded[key]) and loaded[key].requires_grad for key in mine)


@pytest.mark.parametrize("family", list(BUILDERS))
@pytest.mark.parametrize("kind", list(SETTINGS))
def test_written_by_peft_read_here(family: str, kind: str, tmp_path: Path) -> None:
    given = settings_for(family, kind)
    config = peft.LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=given.get("target", "all-linear"),
        use_rslora=given.get("rslora", False),
        lora_dropout=given.get("dropout", 0.0),
        modules_to_save=given.get("modules_to_save"),
        rank_pattern={"layers.1.self_attn.q_proj": 2, "c_proj": 5},
        alpha_pattern={"o_proj": 7, r"h\.0\.mlp\.c_proj": 2},
        task_type="CAUSAL_LM",
    )
    theirs = peft.get_peft_model(build(family), config)
    teach_peft(theirs)
    expected = logits(theirs)
    theirs.save_pretrained(str(tmp_path), save_embedding_layers=False)
    model = build(family)
    before = logits(model)
    load_adapter(model, tmp_path)
    assert difference(logits(model), expected) < 1e-5
    with disable_adapters(model):
        assert difference(logits(model), before) < 1e-6
    # And back again: what was read is written so that PEFT still reads the same function from it.
    save_adapter(model, tmp_path / "again", base_name="some/base")
    assert difference(logits(in_peft(build(family), tmp_path / "again")), expected) < 1e-5


@pytest.mark.parametrize("family", TIED)
def test_a_tie_that_peft_kept_is_kept_and_one_that_it_cut_is_cut(family: str, tmp_path: Path) -> None:
    name = EMBEDDINGS.get(family, "embed_tokens")
    for tie in (True, False):
        config = peft.LoraConfig(
            r=2, target_modules="all-linear", modules_to_save=[name, "lm_head"], ensure_weight_tying=tie
        )
        theirs = peft.get_peft_model(build(family), config)
        teach_peft(theirs)
        theirs.save_pretrained(str(tmp_path / str(tie)))
        model = build(family)
        load_adapter(model, tmp_path / str(tie))
        assert difference(logits(model), logits(theirs)) < 1e-5
        masters = [key for key in adapter_parameters(model) if "lora_" not in key]
        assert len(masters) == (1 if tie else 2)
        assert model.config.tie_word_embeddings is tie


@pytest.mark.parametrize("family", TIED)
def test_tied_embeddings_stay_tied_in_peft(family: str, tmp_path: Path) -> None:
    model = taught(family, "head")
    save_adapter(model, tmp_path, base_name="some/base")
    theirs = in_peft(build(family), tmp_path)
    merged = theirs.merge_and_unload()
    assert merged.get_input_embeddings().weight is merged.get_output_embeddings().weight
    assert difference(logits(merged), logits(model)) < 1e-5


def test_bf16_models_agree_with_peft_within_rounding(tmp_path: Path) -> None:
    """PEFT computes the update in fp32 and rounds after each sum, we compute it in bf16: both are near the
    exact.
    """
    exact = taught("llama", "both")
    save_adapter(exact, tmp_path, base_name="some/base")
    rounded = build("llama").to(torch.bfloat16)
    load_adapter(rounded, tmp_path)
    theirs = in_peft(build("llama").to(torch.bfloat16), tmp_path)
    ours, peers = difference(logits(rounded), logits(exact)), difference(logits(theirs), logits(exact))
    assert 0 < ours < 2 * peers


def test_the_config_is_what_peft_would_write(tmp_path: Path) -> None:
    model = build("llama")
    apply_lora(model, rank=4, alpha=6, dropout=0.25, rslora=True, target=["q_proj", "up_proj"])
    save_adapter(model, tmp_path, base_name="some/base", revision="abc")
    ours = peft.PeftConfig.from_pretrained(str(tmp_path))
    theirs = peft.LoraConfig(
        r=4,
        lora_alpha=6,
        lora_dropout=0.25,
        use_rslora=True,
        target_modules=["q_proj", "up_proj"],
        task_type="CAUSAL_LM",
        base_model_name_or_path="some/base",
        revision="abc",
        inference_mode=True,
    )
    different = {k for k, v in theirs.to_dict().items() if ours.to_dict()[k] != v}
    assert different <= {"peft_version"}
    keys = load_file(tmp_path / "adapter_model.safetensors").keys()
    reference = peft.get_peft_model(build("llama"), theirs)
    assert set(keys) == set(peft.get_peft_model_state_dict(reference))


def read_config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text())


def edit_config(folder: Path, **changes: Any) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({**read_config(folder), **changes}))


@pytest.mark.parametrize(
    ("target", "names"),
    [
        (["q_proj"], ["q_proj"]),
        ("all", ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]),
        (r"model\.layers\.0\.mlp\..*_proj", [f"model.layers.0.mlp.{n}_proj" for n in ("down", "gate", "up")]),
    ],
)
def test_targets_are_named_as_shortly_as_is_exact(target: Any, names: list[str], tmp_path: Path) -> None:
    model = build("llama")
    apply_lora(model, rank=2, target=target)
    save_adapter(model, tmp_path, base_name="some/base")
    assert read_config(tmp_path)["target_modules"] == names


def test_ranks_and_alphas_of_single_modules_survive(tmp_path: Path) -> None:
    model = build("llama")
    apply_lora(model, rank=2, alpha=4, target=["q_proj", "v_proj"])
    name = "model.layers.1.self_attn.v_proj"
    attention = model.get_submodule("model.layers.1.self_attn")
    attention.v_proj = LoraLinear.from_base(attention.v_proj.base, 5, 7.0)
    teach(model)
    save_adapter(model, tmp_path, base_name="some/base")
    assert read_config(tmp_path)["rank_pattern"] == {r"^model\.layers\.1\.self_attn\.v_proj": 5}
    assert read_config(tmp_path)["alpha_pattern"] == {r"^model\.layers\.1\.self_attn\.v_proj": 7}
    again = build("llama")
    load_adapter(again, tmp_path)
    loaded = again.get_submodule(name)
    assert isinstance(loaded, LoraLinear)
    assert (loaded.rank, loaded.alpha) == (5, 7)
    assert difference(logits(in_peft(build("llama"), tmp_path)), logits(model)) < 1e-5
    attention.v_proj.rslora = True
    with pytest.raises(ModelError, match=r"holds one rslora for all modules, not \[False, True\]"):
        save_adapter(model, tmp_path, base_name="some/base")


@pytest.mark.parametrize(
    "more",
    [
        {"layers_to_transform": [1], "layers_pattern": "layers"},
        {"layers_to_transform": 0},
        {"exclude_modules": ["v_proj", "0.self_attn.q_proj"]},
        {"exclude_modules": r".*\.1\..*"},
    ],
)
def test_layers_and_exclusions_are_read_as_peft_means_them(more: dict[str, Any], tmp_path: Path) -> None:
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "up_proj"], **more)
    theirs = peft.get_peft_model(build("llama"), config)
    teach_peft(theirs)
    theirs.save_pretrained(str(tmp_path))
    model = build("llama")
    found = load_adapter(model, tmp_path)
    assert set(found.targets) == set(theirs.targeted_module_names)
    assert difference(logits(model), logits(theirs)) < 1e-5


def test_a_loaded_adapter_can_be_frozen_and_fp16_files_become_fp32_masters(tmp_path: Path) -> None:
    model = taught("llama")
    save_adapter(model, tmp_path, base_name="some/base")
    weights = tmp_path / "adapter_model.safetensors"
    save_file({key: value.half() for key, value in load_file(weights).items()}, weights)
    again = build("llama")
    found = load_adapter(again, tmp_path, trainable=False)
    assert found.num_trainable == 0
    assert {p.dtype for p in adapter_parameters(again).values()} == {torch.float32}
    assert difference(logits(again), logits(model)) < 1e-2


UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"bias": "boft_only"}, "bias='boft_only'"),
    ({"lora_bias": True}, "lora_bias=True"),
    ({"peft_type": "IA3"}, "peft_type='IA3'"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
    ({"layer_replication": [[0, 1]]}, "layer_replication=[[0, 1]]"),
    ({"of_the_future": 3}, "of_the_future=3"),
    ({"lora_bias": True, "bias": "some"}, "bias='some', lora_bias=True"),
]


@pytest.mark.parametrize(("changes", "message"), UNSUPPORTED)
def test_what_is_more_than_plain_lora_is_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    save_adapter(taught("llama"), tmp_path, base_name="some/base")
    edit_config(tmp_path, **changes)
    with pytest.raises(ModelError) as error:
        load_adapter(build("llama"), tmp_path)
    assert f"Luthier reads plain LoRA adapters, and this one has {message}." in str(error.value)
    assert "Merge it into its base model with PEFT" in str(error.value)


def test_all_mismatches_are_told_at_once_and_nothing_changes(tmp_path: Path) -> None:
    save_adapter(taught("llama", "norm"), tmp_path, base_name="some/base")
    weights = tmp_path / "adapter_model.safetensors"
    tensors = load_file(weights)
    layer = "base_model.model.model.layers.0.self_attn"
    del tensors[f"{layer}.q_proj.lora_A.weight"]
    tensors[f"{layer}.v_proj.lora_B.weight"] = torch.zeros(9, 4)
    tensors[f"{layer}.x_proj.lora_A.weight"] = torch.zeros(4, 3)
    save_file(tensors, weights)
    model = build("llama")
    before = logits(model)
    with pytest.raises(ModelError) as error:
        load_adapter(model, tmp_path)
    message = str(error.value)
    assert (
        f"{tmp_path} does not fit this LlamaForCausalLM. Use the base model that it was made for (some/base)."
        in message
    )
    for line in (
        "missing: model.layers.0.self_attn.q_proj.lora_A.weight [4, 32]",
        "unexpected: model.layers.0.self_attn.x_proj.lora_A.weight [4, 3]",
        "wrong shape: model.layers.0.self_attn.v_proj.lora_B.weight is [9, 4] in the file, [16, 4] in the model",
    ):
        assert line in message
    assert len(message.splitlines()) == 4
    assert not adapters(model)
    assert torch.equal(logits(model), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_adapter_of_another_model_or_on_norms_is_refused(tmp_path: Path) -> None:
    save_adapter(taught("gpt2"), tmp_path, base_name="some/base")
    with pytest.raises(ModelError, match=r"unexpected: transformer\.h\.0\.attn\.c_attn\.lora_A\.weight"):
        load_adapter(build("llama"), tmp_path)
    for changes, message in (
        ({"target_modules": ["q_proj", "norm"]}, r"model\.norm is of class LlamaRMSNorm; LoRA is read"),
        ({"target_parameters": ["w"]}, "target_parameters names w, which is no stacked weight"),
    ):
        save_adapter(taught("llama"), tmp_path / "norm", base_name="some/base")
        edit_config(tmp_path / "norm", **changes)
        with pytest.raises(ModelError, match=message):
            load_adapter(build("llama"), tmp_path / "norm")


def test_broken_folders_are_explained(tmp_path: Path) -> None:
    model = taught("llama")
    with pytest.raises(ModelError, match=r"holds no adapter: adapter_config\.json is missing"):
        load_adapter(build("llama"), tmp_path)
    save_adapter(model, tmp_path, base_name="some/base")
    weights = tmp_path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors cannot be read"):
        load_adapter(build("llama"), tmp_path)
    weights.unlink()
    with pytest.raises(ModelError, match=r"holds no weights: adapter_model\.safetensors is missing"):
        load_adapter(build("llama"), tmp_path)
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(ModelError, match=r"a pickle that can run code when read\. Convert it"):
        load_adapter(build("llama"), tmp_path)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"adapter_config\.json is not JSON"):
        load_adapter(build("llama"), tmp_path)
    (tmp_path / "adapter_config.json").write_text("[]")
    with pytest.raises(ModelError, match="holds a list, not an object"):
        load_adapter(build("llama"), tmp_path)


def test_saving_needs_an_adapter_and_a_disk_and_keeps_other_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no LoRA adapter to save"):
        save_adapter(build("llama"), tmp_path, base_name="some/base")
    model = taught("llama")
    (tmp_path / "tokenizer.json").write_text("{}")
    save_adapter(model, tmp_path, base_name="some/base")
    assert {p.name for p in tmp_path.iterdir()} == {
        "tokenizer.json",
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_a_full_disk_leaves_the_adapter_that_was_there(tmp_path: Path) -> None:
    model = taught("llama")
    save_adapter(model, tmp_path, base_name="some/base")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    teach(model, seed=9)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # files end after 1,000 bytes, as on a full disk
    try:
        with pytest.raises(RunError, match="cannot be written: the disk"):
            save_adapter(model, tmp_path, base_name="some/base")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("kind", ["all", "both"])
def test_values_go_back_into_the_adapter_that_is_there(kind: str, tmp_path: Path) -> None:
    """What a checkpoint needs: the same parameters, whole, bit for bit, also of a bf16 model."""
    model = build("smollm").to(torch.bfloat16)
    apply_lora(model, rank=4, **settings_for("smollm", kind))
    before = logits(model)
    teach(model)
    saved = {key: parameter.clone() for key, parameter in adapter_parameters(model).items()}
    save_adapter(model, tmp_path, base_name="some/base")
    owned = dict(adapter_parameters(model))
    teach(model, seed=9)
    load_adapter(model, tmp_path)
    for key, parameter in adapter_parameters(model).items():
        assert parameter is owned[key]
        assert torch.equal(parameter, saved[key])
        assert parameter.requires_grad
    with disable_adapters(model):
        assert torch.equal(logits(model), before)


def test_another_adapter_does_not_go_into_the_one_that_is_there(tmp_path: Path) -> None:
    save_adapter(taught("llama"), tmp_path, base_name="some/base")
    model = build("llama")
    apply_lora(model, rank=4, alpha=20, target=["q_proj"])
    with pytest.raises(ModelError) as error:
        load_adapter(model, tmp_path)
    name = "model.layers.0.self_attn"
    assert f"unexpected: {name}.v_proj.lora_A.weight [4, 32]" in str(error.value)
    assert f"other scale: {name}.q_proj has 2 in the file, 5 in the model" in str(error.value)
    with pytest.raises(ModelError, match="already has adapters on 2 modules"):
        attach_adapter(model, tmp_path)
