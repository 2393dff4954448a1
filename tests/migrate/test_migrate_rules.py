"""What single keys mean: the traps of each tool's files, one test each."""

import json

import pytest

from luthier.config.load import config_from_dict
from luthier.config.plugins import known_plugins
from luthier.errors import ConfigError
from luthier.migrate.findings import Imported, Kind
from luthier.migrate.tools import Refused
from migrate_parts import imported, small


def kinds(result: Imported, key: str) -> set[Kind]:
    return {finding.kind for finding in result.findings if finding.key == key}


def said(result: Imported, key: str) -> str:
    return " ".join(finding.text for finding in result.findings if finding.key == key)


def test_the_typo_that_axolotl_ships(tmp_path):
    """`context_parapllel_size` does nothing there, and nobody is told."""
    result = imported(tmp_path, small("axolotl") | {"context_parapllel_size": 2})
    assert kinds(result, "context_parapllel_size") == {Kind.UNKNOWN}
    assert said(result, "context_parapllel_size").endswith("did you mean context_parallel_size?")


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [("sequence_length", "sequence_len"), ("seqence_len", "sequence_len"), ("lora_rank", "lora_r")],
)
def test_keys_of_other_tools_and_misspelt_ones(tmp_path, wrong, meant):
    result = imported(tmp_path, small("axolotl") | {wrong: 8})
    assert kinds(result, wrong) == {Kind.UNKNOWN} and meant in said(result, wrong)


@pytest.mark.parametrize(
    ("key", "value", "target"),
    [
        ("learning_rate", -1, "optim.lr"),
        ("num_epochs", -3, "train.epochs"),
        ("weight_decay", -0.1, "optim.weight_decay"),
        ("val_set_size", -0.5, "data.eval_fraction"),
    ],
)
def test_values_out_of_range_are_refused_by_the_source_s_own_key(tmp_path, key, value, target):
    with pytest.raises(Refused, match=rf"line \d+, {key}: {target} is {value}"):
        imported(tmp_path, small("axolotl") | {key: value})


def test_values_that_cannot_be_read_are_told_and_left_out(tmp_path):
    result = imported(
        tmp_path, small("axolotl") | {"val_set_size": 5.5, "optimizer": "adamwww", "lr_scheduler": "cosin"}
    )
    assert "whole number" in said(result, "val_set_size")
    assert "did you mean adamw?" in said(result, "optimizer")
    assert "did you mean cosine?" in said(result, "lr_scheduler")


@pytest.mark.parametrize("prefix", ["", "fsdp_"])
def test_fsdp_s_options_with_and_without_prefix(tmp_path, prefix):
    options = {f"{prefix}offload_params": False, f"{prefix}state_dict_type": "FULL_STATE_DICT"}
    result = imported(tmp_path, small("axolotl") | {"fsdp_config": options})
    assert kinds(result, "fsdp_config") == {Kind.NONE} and not result.of(Kind.UNKNOWN)
    wrong = imported(tmp_path, small("axolotl") | {"fsdp_config": {f"{prefix}ofload_params": True}})
    assert "did you mean offload_params?" in wrong.of(Kind.UNKNOWN)[0].text


def test_a_warm_up_below_one_step_is_a_share(tmp_path):
    assert (
        imported(tmp_path, small("axolotl") | {"warmup_steps": 0.1}).values["schedule"]["warmup_ratio"] == 0.1
    )
    assert (
        imported(tmp_path, small("axolotl") | {"warmup_steps": 10}).values["schedule"]["warmup_steps"] == 10
    )


def test_a_warm_up_longer_than_the_run_ends_with_it(tmp_path):
    """transformers lets the run end within its warm-up; Luthier would refuse that."""
    result = imported(tmp_path, small("axolotl") | {"warmup_steps": 100, "max_steps": 10})
    assert config_from_dict(result.values).schedule.warmup_steps == 10


def test_batch_size_is_another_way_to_write_the_accumulation(tmp_path):
    """Two of the three say it all."""
    one = imported(tmp_path, small("axolotl") | {"gradient_accumulation_steps": 4})
    other = imported(tmp_path, small("axolotl") | {"batch_size": 8})
    assert one.values["train"] == other.values["train"]


def test_a_share_and_a_number_of_held_out_rows(tmp_path):
    share = imported(tmp_path, small("llamafactory") | {"val_size": 0.1}).values["data"]
    rows = imported(tmp_path, small("llamafactory") | {"val_size": 50}).values["data"]
    assert (share["eval_fraction"], rows["eval_rows"]) == (0.1, 50)


def test_evaluations_need_rows_to_evaluate(tmp_path):
    """`eval_steps` without held-out rows would be refused by `luthier check`, so it is left out."""
    none = imported(tmp_path, small("llamafactory") | {"eval_strategy": "steps", "eval_steps": 100})
    some = imported(
        tmp_path, small("llamafactory") | {"eval_strategy": "steps", "eval_steps": 100, "val_size": 0.1}
    )
    assert "eval" not in none.values and some.values["eval"]["every"] == 100


@pytest.mark.parametrize(("key", "learn"), [("train_on_prompt", "all"), ("mask_history", "last")])
def test_what_is_learned(tmp_path, key, learn):
    assert imported(tmp_path, small("llamafactory") | {key: True}).values["data"]["learn"] == learn
    assert "learn" not in imported(tmp_path, small("llamafactory") | {key: False}).values["data"]


def test_sets_of_a_registry_keep_their_names_and_numbers_of_rows(tmp_path):
    values = small("llamafactory") | {"dataset": "one, two", "dataset_dir": "sets", "max_samples": 100}
    assert imported(tmp_path, values).values["data"]["sets"] == [
        {"path": "sets/dataset_info.json#one", "rows": 100},
        {"path": "sets/dataset_info.json#two", "rows": 100},
    ]
    online = imported(tmp_path, small("llamafactory") | {"dataset": "owner/rows", "dataset_dir": "ONLINE"})
    assert online.values["data"]["path"] == "hf:owner/rows"


def test_a_registry_that_is_here_is_looked_into(tmp_path):
    registry = tmp_path / "dataset_info.json"
    registry.write_text(json.dumps({"rows": {}, "seen": {"columns": {"images": "images"}}}))
    here = small("llamafactory") | {"dataset_dir": str(tmp_path)}
    assert not imported(tmp_path, here).of(Kind.UNKNOWN)
    wrong = imported(tmp_path, here | {"dataset": "rowz"}).of(Kind.UNKNOWN)
    assert wrong[0].text.endswith("did you mean rows?")
    with pytest.raises(Refused, match="images"):
        imported(tmp_path, here | {"dataset": "seen"})


def test_other_rows_stand_in_for_those_that_cannot_be_found(tmp_path):
    values = small("llamafactory-v1", train_dataset="list.yaml")
    with pytest.raises(Refused, match=r"list\.yaml, which is not here.*--data"):
        imported(tmp_path, values)
    for tool in ("llamafactory", "llamafactory-v1", "axolotl", "torchtune"):
        result = imported(tmp_path, small(tool), rows=["mine.jsonl"])
        assert config_from_dict(result.values).data.path == ["mine.jsonl"]


def test_another_optimizer_s_learning_rate_is_not_taken_over(tmp_path):
    adamw = imported(tmp_path, small("axolotl", optimizer="paged_adamw_8bit")).values["optim"]
    other = imported(tmp_path, small("axolotl", optimizer="lomo"))
    lion = imported(tmp_path, small("axolotl", optimizer="lion_pytorch")).values["optim"]
    assert adamw == {"name": "adamw_8bit", "lr": 1e-4} and lion == {"name": "lion", "lr": 1e-4}
    assert other.values["optim"] == {"name": "adamw"} and kinds(other, "learning_rate") == {Kind.NONE}


@pytest.mark.parametrize(("flag", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16")])
def test_precision(tmp_path, flag, dtype):
    on = imported(tmp_path, small("llamafactory") | {flag: True})
    off = imported(tmp_path, small("llamafactory") | {flag: False})
    assert (on.values["model"]["dtype"], off.values["model"]["dtype"]) == (dtype, "float32")
    assert imported(tmp_path, small("axolotl") | {"bf16": "auto"}).values["model"]["dtype"] == "auto"


@pytest.mark.parametrize(
    ("tool", "changes", "reason"),
    [
        ("llamafactory", {"finetuning_type": "oft"}, "finetuning_type: tunes by rotations"),
        ("llamafactory", {"use_asft_loss": True}, "use_asft_loss: changes the loss"),
        ("llamafactory", {"do_train": False, "export_dir": "out"}, "export_dir: an export"),
        ("llamafactory", {"stage": "ppo"}, "stage: learns by reinforcement"),
        (
            "llamafactory",
            {"adapter_name_or_path": "a", "create_new_adapter": True},
            "adapter_name_or_path: is merged before",
        ),
        ("axolotl", {"processor_type": "AutoProcessor"}, "processor_type: trains on images"),
        ("axolotl", {"base_model": "owner/model-AQLM-2Bit"}, "stored as AQLM"),
        (
            "axolotl",
            {"qat": {"weight_dtype": "nvfp4", "group_size": 16}},
            "qat: trains for nvfp4 in groups of 16",
        ),
        ("axolotl", {"plugins": ["axolotl.integrations.kd.KDPlugin"]}, "plugins: .*teacher"),
        (
            "torchtune",
            {"kd_ratio": 0.5, "teacher_model": {"_component_": "x"}},
            "teacher_checkpointer: has no checkpoint_dir",
        ),
        ("torchtune", {"quantizer": {"_component_": "x"}}, "quantizer: trains .* by x, which is not known"),
    ],
)
def test_runs_that_luthier_cannot_do_are_refused_with_the_reason(tmp_path, tool, changes, reason):
    with pytest.raises(Refused, match=reason):
        imported(tmp_path, small(tool) | changes)


@pytest.mark.parametrize("name", ["dpo", "kto", "orpo", "simpo"])
def test_a_method_is_taken_over_once_luthier_has_it(tmp_path, name):
    keys = {"dpo": "rl_beta", "kto": "rl_beta", "orpo": "orpo_alpha", "simpo": "rl_beta"}
    values = small("axolotl") | {"rl": name, keys[name]: 0.3}
    kind = "chatml.ultra" if name == "kto" else "chat_template.default"
    values["datasets"] = [{"path": "owner/rows", "type": kind}]
    if name in known_plugins()["method"]:
        method = imported(tmp_path, values).values["method"]
        assert method == {"name": name, "beta": 0.3}
    else:
        with pytest.raises(Refused, match=r"rl: learns .* which Luthier does not do yet"):
            imported(tmp_path, values)


def test_references_inside_a_recipe_are_put_in(tmp_path):
    values = small("torchtune") | {"home": None, "output_dir": "out/${name}", "name": "first"}
    assert imported(tmp_path, values).values["run"] == {"root": "out", "name": "first"}


def test_the_end_of_a_set_held_out_is_a_share_by_content(tmp_path):
    data = {"_component_": "torchtune.datasets.alpaca_dataset"}
    values = small("torchtune") | {
        "dataset": data | {"split": "train[:90%]"},
        "dataset_val": data | {"split": "train[90%:]"},
        "run_val_every_n_steps": 50,
    }
    config = config_from_dict(imported(tmp_path, values).values)
    assert (round(config.data.eval_fraction, 9), config.eval.every) == (0.1, 50)
    assert config.data.sets[0].split is None


def test_modules_by_the_names_of_the_hub(tmp_path):
    model = {"_component_": "torchtune.models.qwen3.lora_qwen3_0_6b_base", "apply_lora_to_mlp": True}
    result = imported(
        tmp_path, small("torchtune") | {"model": model | {"lora_attn_modules": ["q_proj", "output_proj"]}}
    )
    assert result.values["lora"]["target"] == ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    "values", [{"a": 1, "b": 2}, {"model": "m", "data": "d.jsonl", "seed": 1}, {"model": "m"}]
)
def test_files_of_no_known_tool(tmp_path, values):
    with pytest.raises(ConfigError, match=r"configuration of"):
        imported(tmp_path, values)


@pytest.mark.parametrize("tool", ["llamafactory", "axolotl"])
def test_noise_on_embeddings_is_taken_over_unless_it_is_off(tmp_path, tool):
    result = imported(tmp_path, small(tool) | {"neftune_noise_alpha": 5})
    assert result.values["train"]["neftune_noise_alpha"] == 5.0
    assert kinds(imported(tmp_path, small(tool) | {"neftune_noise_alpha": 0}), "neftune_noise_alpha") == {
        Kind.NEEDLESS
    }


def test_smoothed_targets_belong_to_sft_alone(tmp_path):
    given = {"label_smoothing_factor": 0.1}
    result = imported(tmp_path, small("llamafactory") | given)
    assert result.values["method"] == {"name": "sft", "label_smoothing": 0.1}
    result = imported(tmp_path, small("llamafactory") | given | {"stage": "dpo"})
    assert "label_smoothing" not in result.values["method"]
    assert kinds(result, "label_smoothing_factor") == {Kind.NONE}


@pytest.mark.parametrize(("tool", "switch"), [("llamafactory", "use_eaft_loss"), ("axolotl", "use_eaft")])
def test_the_entropy_gate_is_taken_over_with_its_power(tmp_path, tool, switch):
    result = imported(tmp_path, small(tool) | {switch: True, "eaft_alpha": 0.5})
    assert result.values["method"] == {"name": "eaft", "alpha": 0.5}
    result = imported(tmp_path, small(tool) | {"eaft_alpha": 0.5})
    assert result.values["method"] == {"name": "sft"} and kinds(result, "eaft_alpha") == {Kind.NEEDLESS}
    if tool == "axolotl":
        more = imported(tmp_path, small(tool) | {switch: True, "eaft_k": 30})
        assert kinds(more, "eaft_k") == {Kind.NONE}


def test_weights_of_wpo_are_taken_over(tmp_path):
    result = imported(tmp_path, small("axolotl") | {"rl": "dpo", "dpo_use_weighting": True})
    assert result.values["method"]["wpo"] is True


def test_what_a_preference_is_compared_with(tmp_path):
    """A second model, numbers computed beforehand; where nothing is compared they change nothing."""
    other = {"ref_model": "owner/other", "dataset": "pairs", "stage": "dpo"}
    assert imported(tmp_path, small("llamafactory") | other).values["reference"] == {"name": "owner/other"}
    without = imported(tmp_path, small("llamafactory") | other | {"pref_loss": "orpo"})
    assert "reference" not in without.values and kinds(without, "ref_model") == {Kind.NEEDLESS}
    before = {"rl": "dpo", "precompute_ref_log_probs": True}
    assert imported(tmp_path, small("axolotl") | before).values["reference"] == {"precompute": True}
    plain = imported(tmp_path, small("axolotl") | {"precompute_ref_log_probs": True})
    assert "reference" not in plain.values


@pytest.mark.parametrize(
    ("tool", "name"), [("axolotl", "lr_scheduler"), ("llamafactory", "lr_scheduler_type")]
)
def test_the_decay_of_wsd(tmp_path, tool, name):
    options = {"num_decay_steps": 50, "decay_type": "1-sqrt"}
    changes = {name: "warmup_stable_decay", "lr_scheduler_kwargs": options}
    schedule = imported(tmp_path, small(tool, **changes)).values["schedule"]
    assert (schedule["name"], schedule["decay_steps"], schedule["decay_shape"]) == ("wsd", 50, "1-sqrt")


def test_the_learning_rate_of_embeddings_is_a_group_where_they_are_trained(tmp_path):
    whole = {"adapter": None, "learning_rate": 2e-4}
    for change in ({"embedding_lr": 5e-5}, {"embedding_lr_scale": 0.25}):
        result = imported(tmp_path, small("axolotl", **whole, **change))
        (group,) = config_from_dict(result.values).optim.groups
        assert group.match == ["embeddings", "head"] and group.lr == pytest.approx(5e-5)
    lora = imported(tmp_path, small("axolotl", adapter="lora", embedding_lr=5e-5))
    assert kinds(lora, "embedding_lr") == {Kind.NEEDLESS} and "groups" not in lora.values.get("optim", {})
