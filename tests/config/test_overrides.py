"""`key=value` settings laid over a file."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.config.load import config_from_dict
from luthier.config.overrides import expand_shorthands, parse_override, shorthands, split_arguments
from luthier.config.plugins import known_plugins
from luthier.config.tree import Config
from luthier.errors import ConfigError

BASE = {"model": "demo:tiny", "data": "a.jsonl"}
METHODS = ", ".join(sorted(known_plugins()["method"]))


def faults(values: dict, *overrides: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        config_from_dict(values, overrides)
    return caught.value.faults


def test_an_override_sets_one_key_and_keeps_its_neighbours():
    config = config_from_dict({**BASE, "train": {"epochs": 2, "steps": 7}}, ["train.epochs=3"])
    assert (config.train.epochs, config.train.steps) == (3.0, 7)


def test_values_are_read_as_yaml():
    overrides = ["data=[a.jsonl, b.jsonl]", "optim.lr=2e-4", "offline=true", "data.template_args={think: no}"]
    config = config_from_dict(BASE, overrides)
    assert config.data.path == ["a.jsonl", "b.jsonl"]
    assert config.optim.lr == 2e-4
    assert config.offline is True
    assert config.data.template_args == {"think": "no"}


def test_a_section_that_is_absent_is_made():
    assert config_from_dict(BASE).lora is None
    lora = config_from_dict(BASE, ["lora.rank=32"]).lora
    assert lora is not None and lora.rank == 32
    assert config_from_dict({**BASE, "lora": None}, ["lora.rank=32"]).lora == lora
    assert config_from_dict(BASE, ["lora={}"]).lora is not None


@pytest.mark.parametrize("null", ["lora=null", "lora=~", "lora="])
def test_null_removes_a_section(null):
    assert config_from_dict({**BASE, "lora": {"rank": 4}}, [null]).lora is None


def test_the_last_override_wins():
    assert config_from_dict(BASE, ["seed=1", "seed=2"]).seed == 2
    lora = config_from_dict({**BASE, "lora": {"alpha": 4}}, ["lora=null", "lora.rank=2"]).lora
    assert lora is not None and (lora.rank, lora.alpha) == (2, None)


@pytest.mark.parametrize("section", sorted(shorthands()))
def test_a_short_form_sets_its_key_and_keeps_the_rest(section):
    key = shorthands()[section].key
    before = {"model": {"name": "a", "dtype": "float32"}, "data": {"path": "a", "cache": False}}
    before |= {
        "schedule": {"name": "linear", "min_ratio": 0.5},
        "run": {"name": "a", "root": "b"},
        "method": "sft",
        **({} if section in ("tune", "peft") else {"lora": {}}),
    }
    chosen = {
        "schedule": "wsd",
        "method": "sft",
        "quant": "int8",
        "qat": "int8",
        "tune": "lisa",
        "peft": "ia3",
    }
    value = chosen.get(section, "other")
    changed = config_from_dict(before, [f"{section}={value}"])
    assert changed == config_from_dict(before, [f"{section}.{key}={value}"])
    kept = {name: getattr(changed, name) for name in Config.model_fields if name != section}
    assert kept == {name: getattr(config_from_dict(before), name) for name in kept}


def test_setting_inside_a_short_form_keeps_the_short_value():
    config = config_from_dict(BASE, ["model.dtype=float32", "data.eval_rows=3", "schedule.min_ratio=0.1"])
    assert (config.model.name, config.model.dtype) == ("demo:tiny", "float32")
    assert (config.data.path, config.data.eval_rows) == (["a.jsonl"], 3)
    assert (config.schedule.name, config.schedule.min_ratio) == ("cosine", 0.1)


def test_a_mapping_replaces_the_section():
    before = {**BASE, "train": {"epochs": 2, "steps": 7}}
    assert config_from_dict(before, ["train={epochs: 3}"]).train.steps is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epoch=3", 'override "train.epoch=3": unknown key train.epoch; did you mean train.epochs?'),
        ("lora.rank=0", 'override "lora.rank=0": lora.rank is 0; expected a whole number of at least 1'),
        (
            "lora.rank=[1",
            'override "lora.rank=[1": the list opened with `[` in line 1 goes on without `,` or `]`: [1',
        ),
        ("seed", 'override "seed": a setting is written key=value, such as train.epochs=3'),
        ("+seed=3", 'override "+seed=3": "+seed" is not a key such as train.epochs; write seed=3'),
        (
            "--lora.rank=3",
            'override "--lora.rank=3": "--lora.rank" is not a key such as train.epochs; write lora.rank=3',
        ),
        ("a..b=3", 'override "a..b=3": "a..b" is not a key such as train.epochs'),
        ("=3", 'override "=3": "" is not a key such as train.epochs'),
        ("seed.x=3", 'override "seed.x=3": seed is 5 (configuration), not a section with keys'),
        (
            "method=stf",
            f'override "method=stf": method.name is "stf"; known: {METHODS}, or ./FILE.py for one of your own; '
            "did you mean sft?",
        ),
    ],
)
def test_a_faulty_override_is_named(override, message):
    assert faults({**BASE, "seed": 5}, override) == [message]


def test_faulty_overrides_come_after_the_faults_of_the_file():
    found = faults({**BASE, "seed": -1}, "train.epoch=3", "lora.rnk=2")
    assert [text.partition(": ")[0] for text in found] == [
        "configuration",
        'override "train.epoch=3"',
        'override "lora.rnk=2"',
    ]


def test_arguments_are_told_into_a_file_and_settings():
    assert split_arguments(["run.yaml", "a=1", "b.c=2"]) == (Path("run.yaml"), ["a=1", "b.c=2"])
    assert split_arguments(["a=1", "run.yaml"]) == (Path("run.yaml"), ["a=1"])
    assert split_arguments(["a=1"]) == (None, ["a=1"])
    assert split_arguments(["./a=b.yaml"]) == (Path("a=b.yaml"), [])
    assert split_arguments([]) == (None, [])
    with pytest.raises(ConfigError) as caught:
        split_arguments(["run.yaml", "lora.rank", "32"])
    assert str(caught.value) == (
        "one config file is expected, but there are 3: run.yaml, lora.rank, 32; write settings as key=value"
    )


@given(st.from_regex(r"[a-z_]{1,5}(\.[a-z_]{1,5}){0,3}", fullmatch=True), st.integers())
def test_an_override_is_its_path_and_its_value(key, number):
    assert parse_override(f"{key}={number}") == (tuple(key.split(".")), number)


def test_expanding_twice_is_expanding_once():
    once = expand_shorthands({**BASE, "method": None, "train": {}})
    assert once == {"model": {"name": "demo:tiny"}, "data": {"path": "a.jsonl"}, "method": None, "train": {}}
    assert expand_shorthands(once) == once


@given(st.lists(st.text(max_size=20) | st.from_regex(r"[a-z.]{1,9}=.{0,9}", fullmatch=True), max_size=4))
def test_any_overrides_give_a_config_or_config_error(overrides):
    try:
        config_from_dict(BASE, overrides)
    except ConfigError as error:
        assert error.faults
