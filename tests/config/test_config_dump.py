"""The resolved YAML reads back to the same configuration, and two configurations are told apart."""

import re
import tempfile
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.config import Config, config_diff, config_from_dict, config_values, dump_config, load_config
from luthier.config.faults import section_class
from luthier.config.lora_section import known_inits
from luthier.config.plugins import known_plugins
from luthier.config.words import Schema
from luthier.errors import ConfigError

BASE = {"model": "demo:tiny", "data": "a.jsonl"}
TRAPS = [
    "null",
    "~",
    "true",
    "no",
    "On",
    "2e-4",
    "1_000",
    "12:30",
    "0x1F",
    "1.",
    "",
    " a ",
    "a: b",
    "- a",
    "#",
    "<<",
]
TRAPS += [
    "=",
    "'",
    '"',
    "*a",
    "&a",
    "!a",
    "a\nb",
    "\t",
    "é",
    "\U0001f3bb",
    "\x85",
    "\ufeff",
    "\x07",
    "---",
    "a,b",
    "[a",
]
TEXT = st.sampled_from(TRAPS) | st.text(max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)


def values_for(schema: Schema) -> st.SearchStrategy[Any]:
    """Values that a field's schema allows."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return st.deferred(lambda: section_values(DEFINITIONS[name]))
    if "anyOf" in schema:
        return st.one_of([values_for(part) for part in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema["type"]
    if kind == "integer":
        return st.integers(schema.get("minimum", 0), 10**6)
    if kind == "number":
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        high = schema.get("maximum", schema.get("exclusiveMaximum"))
        floats = st.floats(low, high, allow_nan=False, allow_infinity=False)
        return floats.filter(
            lambda x: x != schema.get("exclusiveMinimum") and x != schema.get("exclusiveMaximum")
        )
    if kind == "array":
        return st.lists(values_for(schema["items"]), min_size=schema.get("minItems", 0), max_size=3)
    if "pattern" in schema:
        return st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,8}", fullmatch=True)
    strategies: dict[str, st.SearchStrategy[Any]] = {
        "string": TEXT.filter(bool),
        "boolean": st.booleans(),
        "object": st.dictionaries(TEXT.filter(bool), of_any_key(schema), max_size=3),
        "null": st.none(),
    }
    return strategies[kind]


def of_any_key(schema: Schema) -> st.SearchStrategy[Any]:
    """Values of an object whose keys are free."""
    kind = schema.get("additionalProperties")
    return values_for(kind) if isinstance(kind, dict) and kind else JSON


def section_values(schema: Schema) -> st.SearchStrategy[Any]:
    """Sections with some of their keys, and all that they need."""
    needed = schema.get("required", [])
    kinds = {key: values_for(kind) for key, kind in schema["properties"].items()}
    free = {key: kind for key, kind in kinds.items() if key not in needed}
    return st.fixed_dictionaries({key: kinds[key] for key in needed}, optional=free)


SECTIONS = {name: section_class(field.annotation) for name, field in Config.model_fields.items()}
SCHEMAS = {name: section.model_json_schema() for name, section in SECTIONS.items() if section}
PROPERTIES = {name: schema["properties"] for name, schema in SCHEMAS.items()}
DEFINITIONS = {name: kind for schema in SCHEMAS.values() for name, kind in schema.get("$defs", {}).items()}
PROPERTIES["optim"] |= known_plugins()["optim"]["adamw"]["properties"]


def fitting(draw: st.DrawFn, values: dict[str, Any]) -> dict[str, Any]:
    """The section lora without keys that do not go together."""
    lora: dict[str, Any] = values.get("lora", {})
    for key in draw(st.sampled_from([("adapters", "experts"), ("restart", "dora", "experts")])):
        if {"adapters", "restart"} & lora.keys():
            lora.pop(key, None)  # they do not go together
    if "adapters" in lora:
        lora["adapters"] = {f"name-{number}": one for number, one in enumerate(lora["adapters"].values())}
        lora = {key: value for key, value in lora.items() if key not in ("bias", "dora", "restart")}
        values["lora"] = lora
    for one in [lora, *lora.get("adapters", {}).values()]:
        one.pop("start", None)  # takes the place of all others
        one.pop("train", None)
        one.pop("eva_rho", None)
        if "init" in one:
            one["init"] = "kaiming" if "restart" in one else draw(st.sampled_from(known_inits()))
        if isinstance(one.get("layers"), str):
            one["layers"] = draw(st.sampled_from(["8-15", "8-", "last 4"]))
        for key in {"ranks", "alphas"} & one.keys():
            one[key] = {re.escape(name): value for name, value in one[key].items()}
    return lora


@st.composite
def written_configs(draw: st.DrawFn) -> dict[str, Any]:
    """Values for any keys of the tree, each right by itself."""
    values: dict[str, Any] = {"model": {"name": draw(TEXT.filter(bool))}, "data": {"path": ["a.jsonl"]}}
    for name in Config.model_fields:
        if name not in PROPERTIES:
            values[name] = draw(st.booleans() if name == "offline" else st.integers(0, 10**30))
            continue
        if name not in values and draw(st.booleans()):
            continue
        properties = PROPERTIES[name]
        keys = draw(
            st.lists(st.sampled_from([k for k in properties if k != "name"] or ["name"]), unique=True)
        )
        needed = [key for key in SCHEMAS[name].get("required", ()) if key not in values.get(name, {})]
        values.setdefault(name, {})
        values[name] |= {key: draw(values_for(properties[key])) for key in needed}
        values[name] |= {key: draw(values_for(properties[key])) for key in keys if key != "name"}
    if "peft" in values:  # its keys are those of its type, and it stands alone
        values["peft"] = {"type": "ia3", "fan_in_fan_out": draw(st.booleans())}
        for other in ("lora", "quant", "qat", "tune"):
            values.pop(other, None)
        values["model"].pop("new_tokens", None)
        values.get("train", {}).pop("new_token_steps", None)
    lora = fitting(draw, values)
    data = values["data"]
    if data.get("sets"):
        del data["path"]
    held_out = [key for key in ("eval_path", "eval_rows", "eval_fraction") if data.get(key)]
    for key in held_out[1:]:
        del data[key]
    if "lora" not in values:
        values.pop("quant", None)
    else:
        values.pop("tune", None)
        values.get("optim", {}).pop("stochastic_rounding", None)
    values.get("quant", {}).pop("products", None)
    if "quant" in values or lora.get("dropout") or lora.get("dora") or values["model"].get("compile"):
        values.pop("qat", None)
    if draw(st.booleans()):
        values["method"] = {
            "name": "./mine.py",
            **draw(st.dictionaries(st.text("abc", min_size=1), JSON, max_size=3)),
        }
    return values


def built(values: dict[str, Any]) -> Config | None:
    """The configuration, unless its keys clash."""
    try:
        return config_from_dict(values)
    except ConfigError:
        return None


CONFIGS = written_configs().map(built).filter(lambda config: config is not None)


def read_back(text: str) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return load_config(path)


@settings(deadline=None, max_examples=200)
@given(CONFIGS)
def test_what_is_written_reads_back_equal(config):
    text = dump_config(config)
    again = read_back(text)
    assert again == config
    assert dump_config(again) == text
    assert config_diff(config, again) == []


@settings(deadline=None, max_examples=100)
@given(CONFIGS)
def test_other_yaml_readers_see_the_same_text(config):
    """Text that YAML 1.1 would read as something else is quoted; PyYAML's own reader is the oracle."""
    assert yaml.safe_load(dump_config(config)) == config_values(config)


@settings(deadline=None, max_examples=100)
@given(CONFIGS, CONFIGS)
def test_a_difference_is_seen_exactly_where_there_is_one(old, new):
    assert (config_diff(old, new) == []) == (old == new)
    assert len(config_diff(old, new)) == len(config_diff(new, old))


def test_a_null_that_means_something_is_kept():
    config = config_from_dict({**BASE, "train": {"max_grad_norm": None}})
    assert config_values(config)["train"]["max_grad_norm"] is None
    assert read_back(dump_config(config)).train.max_grad_norm is None


def test_short_sections_stand_on_one_line():
    lines = dump_config(config_from_dict({**BASE, "lora": {"rank": 4}})).splitlines()
    assert "eval: {samples: 4, metrics: [], answer_tokens: 128}" in lines
    assert "  rank: 4" in lines  # a longer section has a line for each key
    assert "method: {name: sft, label_smoothing: 0.0, z_loss: 0.0, token_metrics: false}" in lines
    assert "seed: 0" in lines
    assert "  path: [a.jsonl]" in lines
    assert not any("null" in line for line in lines)


def test_the_defaults_of_options_are_written_down():
    assert config_values(config_from_dict(BASE))["optim"] == {
        "name": "adamw",
        "beta1": 0.9,
        "beta2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "groups": [],
        "stochastic_rounding": False,
    }


def test_the_difference_is_one_line_a_key():
    old = config_from_dict({**BASE, "train": {"epochs": 2}, "eval": {"samples": 2}})
    new = config_from_dict(
        {
            **BASE,
            "train": {"epochs": 3, "max_grad_norm": None},
            "lora": {"rank": 4, "target": ["q"]},
            "eval": {"samples": 2},
        }
    )
    assert config_diff(old, new) == [
        "lora: absent -> {rank: 4, ranks: {}, alphas: {}, rslora: false, target: [q], init: kaiming, train_a: true, "
        "dropout: 0.0, modules_to_save: [], bias: none, experts: false, eva_rho: 1.0, dora: false, adapters: {}}",
        "train.epochs: 2.0 -> 3.0",
        "train.max_grad_norm: 1.0 -> null",
    ]
    assert config_diff(new, old)[1:] == ["train.epochs: 3.0 -> 2.0", "train.max_grad_norm: null -> 1.0"]
    assert config_diff(old, old) == []
