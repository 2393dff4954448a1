"""What other tools have to save memory, and what becomes of it: stored weights, thrifty optimizers, adapters."""

from pathlib import Path
from typing import Any

import pytest

from luthier.config.load import config_from_dict
from luthier.migrate.findings import Imported, Kind
from migrate_parts import imported, small

LORA = {"adapter": "lora", "lora_r": 8, "lora_alpha": 16}
TEACHER = {
    "checkpoint_dir": "/weights/Qwen3-14B",
    "_component_": "torchtune.training.FullModelHFCheckpointer",
}


def kinds(result: Imported, key: str) -> set[Kind]:
    return {finding.kind for finding in result.findings if finding.key == key}


@pytest.mark.parametrize(
    ("tool", "changes", "quant"),
    [
        ("axolotl", {"adapter": "qlora"}, {"name": "nf4"}),
        ("axolotl", {"adapter": "qlora", "load_in_4bit": True}, {"name": "nf4"}),
        ("axolotl", LORA | {"load_in_8bit": True}, {"name": "int8"}),
        ("axolotl", LORA | {"load_in_8bit": False, "load_in_4bit": False}, None),
        ("axolotl", {"load_in_4bit": True}, None),
        (
            "axolotl",
            {
                "adapter": "qlora",
                "load_in_4bit": True,
                "bnb_config_kwargs": {"bnb_4bit_quant_type": "fp4", "bnb_4bit_use_double_quant": False},
            },
            {"name": "fp4", "double": False},
        ),
        ("llamafactory", {"quantization_bit": 4}, {"name": "nf4"}),
        (
            "llamafactory",
            {"quantization_bit": 4, "double_quantization": False},
            {"name": "nf4", "double": False},
        ),
        ("llamafactory", {"quantization_bit": 8, "quantization_method": "bnb"}, {"name": "int8"}),
        (
            "llamafactory",
            {"quantization_bit": 3, "quantization_method": "hqq"},
            {"name": "hqq", "num_bits": 3},
        ),
        ("llamafactory", {"quantization_bit": 4, "finetuning_type": "full"}, None),
        (
            "llamafactory-v1",
            {"peft_config": {"name": "lora", "r": 8}, "quant_config": {"name": "bnb", "quantization_bit": 4}},
            {"name": "nf4"},
        ),
        (
            "torchtune",
            {"model": {"_component_": "torchtune.models.qwen3.qlora_qwen3_0_6b_base"}},
            {"name": "nf4"},
        ),
    ],
)
def test_weights_in_few_bits(tmp_path: Path, tool: str, changes: dict[str, Any], quant: Any) -> None:
    result = imported(tmp_path, small(tool) | changes)
    assert result.values.get("quant") == quant
    config = config_from_dict(result.values)
    assert (config.quant is None) == (quant is None)
    assert not result.of(Kind.UNKNOWN)


@pytest.mark.parametrize(
    ("tool", "changes", "qat"),
    [
        (
            "axolotl",
            {"qat": {"weight_dtype": "int4", "activation_dtype": "int8", "group_size": 64}},
            {"name": "int4", "group": 64, "inputs": "int8"},
        ),
        (
            "axolotl",
            {"qat": {"weight_dtype": "torch.int4"}, "adapter": "lora", "lora_r": 8, "lora_dropout": 0.1},
            {"name": "int4", "group": 32},
        ),
        (
            "torchtune",
            {"quantizer": {"_component_": "a.b.Int8DynActInt4WeightQATQuantizer", "groupsize": 128}},
            {"name": "int4", "group": 128, "inputs": "int8"},
        ),
    ],
)
def test_training_for_few_bits(tmp_path: Path, tool: str, changes: dict[str, Any], qat: Any) -> None:
    result = imported(tmp_path, small(tool) | changes)
    assert result.values.get("qat") == qat
    config = config_from_dict(result.values)  # an adapter's dropout, which cannot be, is off
    assert config.qat is not None and not result.of(Kind.UNKNOWN)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("adamw_8bit", "adamw_8bit"),
        ("adamw_bnb_8bit", "adamw_8bit"),
        ("paged_adamw_8bit", "adamw_8bit"),
        ("ao_adamw_4bit", "adamw_4bit"),
        ("paged_adamw_32bit", "adamw"),
        ("schedule_free_adamw", "schedule_free"),
        ("lion_8bit", "lion"),
        ("galore_adamw_8bit", "galore"),
        ("apollo_adamw", "apollo"),
        ("came_pytorch", "came"),
        ("muon", "muon"),
        ("ademamix", "ademamix"),
        ("soap", "soap"),
    ],
)
def test_optimizers_by_their_names(tmp_path: Path, name: str, ours: str) -> None:
    result = imported(tmp_path, small("axolotl") | {"optimizer": name, "lr_scheduler": "cosine"})
    config = config_from_dict(result.values)
    assert (config.optim.name, config.optim.lr) == (ours, 1e-4)
    assert config.schedule.name == ("constant" if ours == "schedule_free" else "cosine")


def test_options_of_projected_optimizers(tmp_path: Path) -> None:
    galore = {"use_galore": True, "galore_rank": 64, "galore_update_interval": 50, "galore_layerwise": True}
    values = small("llamafactory") | {"finetuning_type": "full"}
    result = imported(tmp_path, values | galore)
    expected = {"name": "galore", "rank": 64, "update_every": 50, "scale": 2.0}
    assert result.values["optim"].items() >= expected.items()
    assert kinds(result, "galore_layerwise") == {Kind.NONE}
    apollo = {"use_apollo": True, "apollo_scale_type": "tensor", "apollo_rank": 1, "apollo_scale": 128.0}
    optim = config_from_dict(imported(tmp_path, values | apollo).values).optim
    assert optim.options.items() >= {"rank": 1, "update_every": 200, "scale": 128.0, "per": "tensor"}.items()
    off = imported(tmp_path, values | {"use_galore": False, "galore_rank": 64})
    assert kinds(off, "galore_rank") == kinds(off, "use_galore") == {Kind.NEEDLESS}


@pytest.mark.parametrize(
    ("tool", "changes"),
    [
        ("axolotl", LORA | {"lora_model_dir": "first/adapter", "lora_target_linear": True}),
        ("llamafactory", {"adapter_name_or_path": "first/adapter", "lora_rank": 8}),
    ],
)
def test_an_adapter_is_gone_on_with(tmp_path: Path, tool: str, changes: dict[str, Any]) -> None:
    result = imported(tmp_path, small(tool) | changes)
    assert result.values["lora"] == {"start": "first/adapter"}
    assert config_from_dict(result.values).lora is not None


@pytest.mark.parametrize(
    ("value", "ours"),
    [("pissa", "pissa"), ("pissa_niter_16", "pissa_fast"), ("olora", "olora"), (True, None)],
)
def test_how_adapters_start(tmp_path: Path, value: Any, ours: str | None) -> None:
    changes = LORA | {
        "peft_init_lora_weights": value,
        "peft_layers_to_transform": [1, 2],
        "peft_use_dora": True,
    }
    lora = config_from_dict(imported(tmp_path, small("axolotl") | changes).values).lora
    assert lora is not None and lora.init == (ours or "kaiming") and lora.layers == [1, 2] and lora.dora


def test_reward_models_and_routers(tmp_path: Path) -> None:
    values = small("llamafactory") | {"stage": "rm", "moe_aux_loss_coef": 0.02}
    config = config_from_dict(imported(tmp_path, values).values)
    assert (config.method.name, config.model.router_aux_weight) == ("reward", 0.02)


def test_a_teacher(tmp_path: Path) -> None:
    loss = {"_component_": "torchtune.modules.loss.ForwardKLWithChunkedOutputLoss"}
    values = small("torchtune") | {"teacher_checkpointer": TEACHER, "kd_loss": loss, "kd_ratio": 0.25}
    config = config_from_dict(imported(tmp_path, values).values)
    assert (
        config.method.name == "distill"
        and config.method.options.items() >= {"alpha": 0.25, "beta": 0.0}.items()
    )
    assert config.teacher is not None and config.teacher.name == "Qwen/Qwen3-14B"
