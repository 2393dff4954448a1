"""The JSON Schema says what loading says, and explains every key."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.config import Config, config_from_dict, config_values
from luthier.config.faults import all_keys
from luthier.config.plugins import known_plugins
from luthier.config.schema import config_schema
from luthier.config.source import read_file
from luthier.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("**/*.yaml"))
SCHEMA = config_schema()
TYPES = {"string": str, "array": list, "object": dict, "boolean": bool, "null": type(None)}


def allows(schema: dict[str, Any], value: Any) -> bool:
    """Whether a JSON Schema allows a value: the part of the standard that Luthier's schemas use."""
    if "$ref" in schema and not allows(SCHEMA["$defs"][schema["$ref"].rpartition("/")[2]], value):
        return False
    if "anyOf" in schema and not any(allows(part, value) for part in schema["anyOf"]):
        return False
    if "const" in schema and value != schema["const"]:
        return False
    if "enum" in schema and value not in schema["enum"]:
        return False
    return _right_type(schema.get("type"), value) and _within(schema, value)


def _right_type(kind: str | None, value: Any) -> bool:
    if kind in ("integer", "number"):
        wanted = int if kind == "integer" else (int, float)
        return isinstance(value, wanted) and not isinstance(value, bool)
    return kind is None or isinstance(value, TYPES[kind])


def _allows_free(extra: Any, item: Any) -> bool:
    return allows(extra, item) if isinstance(extra, dict) else bool(extra)


def _within(schema: dict[str, Any], value: Any) -> bool:
    if isinstance(value, dict):
        properties, extra = schema.get("properties", {}), schema.get("additionalProperties", True)
        return all(key in value for key in schema.get("required", ())) and all(
            allows(properties[key], item) if key in properties else _allows_free(extra, item)
            for key, item in value.items()
        )
    if isinstance(value, list):
        items = schema.get("items", {})
        return len(value) >= schema.get("minItems", 0) and all(allows(items, item) for item in value)
    if isinstance(value, str):
        return len(value) >= schema.get("minLength", 0) and bool(re.search(schema.get("pattern", ""), value))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (
            value >= schema.get("minimum", value)
            and value <= schema.get("maximum", value)
            and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
            and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
        )
    return True


KNOWN_WORDS = {
    "$ref",
    "$defs",
    "$schema",
    "anyOf",
    "const",
    "enum",
    "type",
    "properties",
    "additionalProperties",
}
KNOWN_WORDS |= {
    "required",
    "items",
    "minItems",
    "minLength",
    "pattern",
    "minimum",
    "maximum",
    "exclusiveMinimum",
}
KNOWN_WORDS |= {"exclusiveMaximum", "description", "default", "title", "expected"}


def parts(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The schema and every schema within it."""
    inner = [
        *schema.get("anyOf", ()),
        *schema.get("properties", {}).values(),
        *schema.get("$defs", {}).values(),
    ]
    inner += [schema["items"]] if isinstance(schema.get("items"), dict) else []
    return [schema, *(part for one in inner for part in parts(one))]


def test_it_uses_only_words_that_this_test_understands():
    """Else `allows` would say yes to something it did not look at."""
    for part in parts(SCHEMA):
        assert set(part) <= KNOWN_WORDS, set(part) - KNOWN_WORDS
    assert SCHEMA["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert json.loads(json.dumps(SCHEMA)) == SCHEMA


def test_every_key_is_there_and_has_a_description():
    seen = set()
    for name, field in SCHEMA["properties"].items():
        assert field.get("description"), name
        sections = [part for part in field.get("anyOf", [field]) if "$ref" in part]
        if not sections:
            seen.add(name)
        for section in sections:
            resolved = SCHEMA["$defs"][section["$ref"].rpartition("/")[2]]
            for variant in resolved.get("anyOf", [resolved]):
                for key, leaf in variant["properties"].items():
                    assert leaf.get("description"), f"{name}.{key}"
                    seen.add(f"{name}.{key}")
    options = {
        f"{s}.{o}" for s, group in known_plugins().items() for p in group.values() for o in p["properties"]
    }
    assert seen == set(all_keys()) | options


README_EXAMPLE = """\
model: Qwen/Qwen3-0.6B
method: sft
data: chats.jsonl
lora: {rank: 16}
optim: {name: adamw, lr: 2e-4}
train: {epochs: 2, tokens_per_step: 16384}
"""


def test_the_example_of_the_design_is_allowed(tmp_path):
    (tmp_path / "run.yaml").write_text(README_EXAMPLE)
    values = read_file(tmp_path / "run.yaml").values
    assert allows(SCHEMA, values)
    config_from_dict(values)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_example_is_allowed(path):
    values = read_file(path).values
    assert allows(SCHEMA, values)
    config_from_dict(values)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"model": "x"},
        {"model": "x", "data": "y", "epochs": 1},
        {"model": "x", "data": []},
        {"model": "x", "data": "y", "method": "stf"},
        {"model": "x", "data": "y", "method": {"name": "sft", "beta": 1}},
        {"model": "x", "data": "y", "optim": {"betta1": 0.1}},
        {"model": "x", "data": "y", "optim": {"name": "adamw", "beta1": 1}},
        {"model": "x", "data": "y", "schedule": "cosin"},
        {"model": "x", "data": "y", "train": {"epochs": "2"}},
        {"model": "x", "data": "y", "run": "a/b"},
    ],
)
def test_what_loading_refuses_the_schema_refuses(values):
    assert not allows(SCHEMA, values)
    with pytest.raises(ConfigError):
        config_from_dict(values)


@pytest.mark.parametrize(
    "values",
    [
        {"model": {"name": "x"}, "data": ["y", "z"]},
        {"model": "x", "data": {"path": "y"}, "method": "./mine.py"},
        {"model": "x", "data": "y", "method": {"name": "./mine.py", "anything": [1]}},
        {
            "model": "x",
            "data": "y",
            "optim": {"beta1": 0.5, "lr": 0},
            "schedule": "wsd",
            "run": "a",
            "lora": None,
        },
    ],
)
def test_short_forms_and_options_are_allowed(values):
    assert allows(SCHEMA, values)
    config_from_dict(values)


LEAF = st.sampled_from(
    [0, 1, 0.5, -1, "x", "cosine", "", True, [], ["a"], {}, {"rank": 1}, {"name": "sft"}, {"lr": 1}]
)
SECTION = LEAF | st.dictionaries(
    st.sampled_from([*(key.rpartition(".")[2] for key in all_keys()), "beta1", "other"]), LEAF, max_size=3
)


def faults_of(values):
    """What is wrong with a section when it is the only one; what is wrong with several together is a clash."""
    try:
        config_from_dict({"model": "x", "data": "y", **values})
    except ConfigError as error:
        return error.faults
    return ()


@settings(deadline=None, max_examples=400)
@given(st.dictionaries(st.sampled_from([*Config.model_fields, "other"]), SECTION, max_size=3))
def test_schema_and_loading_agree(values):
    """Clashes between keys are the one thing that a schema does not say."""
    values = {"model": "x", "data": "y", **values}
    try:
        config = config_from_dict(values)
    except ConfigError as error:
        clash = (
            "; keep one of them",
            "both absent",
            "need held-out rows",
            "counts evaluations",
            "more than",
            "the run ends",
            "holds",
            "stores frozen weights",
            "peft.type is",  # which types there are, only the installed library knows
        )
        alone = {fault for key, value in values.items() for fault in faults_of({key: value})}
        if any(fault in alone and not any(words in fault for words in clash) for fault in error.faults):
            assert not allows(SCHEMA, values), error
    else:
        assert allows(SCHEMA, values)
        assert allows(SCHEMA, yaml.safe_load(yaml.safe_dump(config_values(config))))
