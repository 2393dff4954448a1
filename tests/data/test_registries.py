"""Lists of data sets of LLaMA-Factory and Axolotl read as they are."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.config.data_section import SetSection
from luthier.data.content import Content
from luthier.data.convert import convert_row, formats_of
from luthier.data.registries import axolotl_sets, expand_registries, is_registry, llamafactory_sets
from luthier.data.sources import Row
from luthier.errors import DataError

SHARED = Path(__file__).resolve().parents[2].parent / "shared"


def said(section: SetSection, record: dict[str, Any]) -> Content:
    return convert_row(Row(0, "rows.jsonl", 1, record), section, formats_of(section))


def one(entry: dict[str, Any]) -> SetSection:
    (section,) = llamafactory_sets({"set": entry}, ["set"], Path("folder")).sets
    return section


def spoken(content: Any) -> list[tuple[str, Any]]:
    return [(message["role"], message["content"]) for message in content.messages]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_every_set_of_a_whole_registry_is_read_or_refused_with_its_reason() -> None:
    info = json.loads((SHARED / "data" / "dataset_info.json").read_text(encoding="utf-8"))
    refused = []
    for name in info:
        try:
            found = llamafactory_sets(info, [name], Path("folder"))
        except DataError as reason:
            refused.append((name, str(reason)))
            continue
        assert len(found.sets) == 1 and not found.missing
        formats_of(found.sets[0])
    assert len(info) > 100
    assert [name for name, _ in refused] == ["deepctrl"] and "ModelScope only" in refused[0][1]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_rows_of_a_registry_say_what_they_say_without_it() -> None:
    """The demos: what their entry declares is what their columns show."""
    folder = SHARED / "data"
    info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    names = ["identity", "alpaca_en_demo", "glaive_toolcall_en_demo", "dpo_en_demo", "kto_en_demo"]
    for name in names:
        (declared,) = llamafactory_sets(info, [name], folder).sets
        plain = SetSection(path=declared.path)
        for record in json.loads(Path(declared.path).read_text(encoding="utf-8"))[:40]:
            assert said(declared, record) == said(plain, record)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared configs are not here")
@pytest.mark.parametrize(("key", "least"), [("datasets", 100), ("pretraining_dataset", 1)])
def test_every_entry_of_axolotls_examples_is_read_or_is_code(key: str, least: int) -> None:
    num_read = 0
    for file in sorted((SHARED / "migrate" / "axolotl").iterdir()):
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        if config.get(key) is None:
            continue
        try:
            found = axolotl_sets(config[key], config.get("rl"))
        except DataError as reason:
            assert "transform is not known here; it may be code of its own" in str(reason)
            continue
        num_read += len(found.sets)
        for section in found.sets:
            formats_of(section)
    assert num_read >= least


def test_columns_that_an_entry_does_not_name_are_not_read() -> None:
    record = {"q": "one?", "a": "two", "input": "more", "system": "be brief", "history": [["x", "y"]]}
    section = one({"file_name": "x.json", "columns": {"prompt": "q", "response": "a"}})
    assert spoken(said(section, record)) == [("user", "one?"), ("assistant", "two")]
    section = one({"file_name": "x.json", "columns": {"prompt": "q", "query": "input", "response": "a", "system": "system"}})  # fmt: skip # noqa: E501
    assert spoken(said(section, record))[:2] == [("system", "be brief"), ("user", "one?\nmore")]


def test_tags_name_fields_and_roles() -> None:
    section = one(
        {
            "file_name": "x.json",
            "formatting": "sharegpt",
            "columns": {"messages": "dialog"},
            "tags": {"role_tag": "who", "content_tag": "said", "user_tag": "U", "assistant_tag": "A"}
            | {"observation_tag": "O", "function_tag": "F", "system_tag": "S"},
        }
    )
    turns = [("S", "s"), ("U", "u"), ("F", '{"name": "f", "arguments": {}}'), ("O", "o"), ("A", "a")]
    content: Any = said(section, {"dialog": [{"who": who, "said": text} for who, text in turns]})
    assert [message["role"] for message in content.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert content.messages[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": {}}


@pytest.mark.parametrize(
    ("entry", "format"),
    [
        ({"columns": {"prompt": "text"}}, "text"),
        ({"ranking": True}, "preference"),
        ({"formatting": "sharegpt", "ranking": True}, "preference"),
        ({"columns": {"prompt": "p", "response": "r", "kto_tag": "k"}}, "unpaired"),
        ({"formatting": "sharegpt"}, "sharegpt"),
        ({"formatting": "openai"}, "messages"),
        ({}, "alpaca"),
    ],
)
def test_the_format_follows_from_the_options(entry: dict[str, Any], format: str) -> None:
    assert one({"file_name": "x.json", **entry}).format == format


def test_where_rows_come_from_and_how_many() -> None:
    assert one({"file_name": "x.json"}).path == str(Path("folder") / "x.json")
    assert one({"cloud_file_name": "s3://b/x.jsonl", "file_name": "y"}).path == "s3://b/x.jsonl"
    section = one(
        {"hf_hub_url": "o/n", "ms_hub_url": "p/q", "folder": "python", "subset": "en", "split": "test"}
    )
    assert (section.path, section.subset, section.split) == ("hf:o/n/python", "en", "test")
    found = llamafactory_sets({"a": {"file_name": "x.json", "num_samples": 7}}, ["a"], Path())
    assert found.sets[0].rows == 7 and "not filled up" in found.notes[0]


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"script_url": "make.py"}, "made by a script .make.py., and no code from data sets is run"),
        ({"ms_hub_url": "a/b"}, "is on ModelScope only"),
        ({"om_hub_url": "a/b"}, "is on Modelers only"),
        ({"ranking": True}, "has none of hf_hub_url"),
        (
            {"file_name": "x", "formatting": "openia"},
            "formatting 'openia' is none of alpaca, sharegpt, openai",
        ),
        ({"file_name": "x", "columns": {"promt": "q"}}, "unknown name promt; did you mean prompt"),
        ({"file_name": "x", "columns": {"prompt": 3}}, "`columns.prompt` must be the name"),
        ({"file_name": "x", "columns": {"system": "s"}}, "names none that the formatting alpaca learns from"),
        ({"file_name": "x", "tags": ["role_tag"]}, "`tags` must be an object"),
        ({"file_name": "x", "num_samples": 0}, "data set set: rows is 0: input should be greater"),
    ],
)
def test_an_entry_that_cannot_be_read(entry: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=f"(?s){reason}"):
        one(entry)


def test_a_registry_in_the_place_of_a_file(tmp_path: Path) -> None:
    info = {"cats": {"file_name": "cats.json"}, "dogs": {"file_name": "dogs.json", "subset": "x"}}
    registry = tmp_path / "dataset_info.json"
    registry.write_text(json.dumps(info))
    own = SetSection(path=f"{registry}#dogs, cats", rows=5, weight=2.0)
    other = SetSection(path="other.jsonl")
    sets, notes = expand_registries([other, own])
    assert [Path(section.path).name for section in sets] == ["other.jsonl", "dogs.json", "cats.json"]
    assert sets[0] is other and not notes
    assert [(section.rows, section.weight, section.subset) for section in sets[1:]] == [
        (5, 2.0, "x"),
        (5, 2.0, None),
    ]
    with pytest.raises(DataError, match=r"lists 2 data sets; say which .*json#cats\. There are cats, dogs"):
        expand_registries([SetSection(path=str(registry))])
    with pytest.raises(DataError, match="has no data set cast; did you mean cats"):
        expand_registries([SetSection(path=f"{registry}#cast")])
    registry.write_text("[1]")
    with pytest.raises(DataError, match="is no list of data sets"):
        expand_registries([SetSection(path=f"{registry}#cats")])
    registry.write_text("{")
    with pytest.raises(DataError, match="is not JSON"):
        expand_registries([SetSection(path=f"{registry}#cats")])
    with pytest.raises(DataError, match="cannot be read"):
        expand_registries([SetSection(path=f"{tmp_path}/none.json#cats")])


def test_a_file_with_the_mark_in_its_name_is_a_file(tmp_path: Path) -> None:
    odd = tmp_path / "take.json#2.json"
    odd.write_text("[]")
    assert not is_registry(str(odd)) and is_registry(f"{tmp_path}/x.json#2")
    assert not is_registry("rows.jsonl") and not is_registry("hf:a/b") and is_registry("run.yaml")


def test_an_axolotl_file_in_the_place_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "run.yml"
    entries = [
        {"path": "a/b", "type": "alpaca", "roles_to_train": ["gpt", "user"]},
        {"path": "x.jsonl", "type": None, "roles_to_train": ["gpt", "user"]},
    ]
    file.write_text(yaml.safe_dump({"base_model": "m", "datasets": entries}))
    sets, notes = expand_registries([SetSection(path=str(file))])
    assert [(section.path, section.format) for section in sets] == [
        ("hf:a/b", "alpaca"),
        ("x.jsonl", "tokenised"),
    ]
    assert any('set data.learn: ["assistant", "user"]' in note for note in notes)
    with pytest.raises(DataError, match="has no list `test_datasets` of data sets; it has datasets"):
        expand_registries([SetSection(path=f"{file}#test_datasets")])


AXOLOTL_ROWS: list[tuple[dict[str, Any], str | None, dict[str, Any], Any]] = [
    ({"type": "completion", "field": "body"}, None, {"body": "b", "text": "t"}, "b"),
    ({"type": "oasst"}, None, {"INSTRUCTION": "q", "RESPONSE": "a"}, [("user", "q"), ("assistant", "a")]),
    ({"type": "metharme"}, None, {"prompt": "q", "generation": "a"}, [("user", "q"), ("assistant", "a")]),
    (
        {"type": "alpaca_w_system.load_open_orca"},
        None,
        {"system_prompt": "s", "question": "q", "response": "a"},
        [("system", "s"), ("user", "q"), ("assistant", "a")],
    ),
    (
        {"type": {"field_instruction": "q", "field_output": "a", "format": "[INST] {instruction} [/INST]"}},
        None,
        {"q": "1", "a": "2"},
        [("user", "1"), ("assistant", "2")],
    ),
    (
        {
            "type": "chat_template",
            "field_messages": "talk",
            "message_property_mappings": {"role": "by", "content": "is"},
        }
        | {"roles": {"user": ["human", "client", "boss"]}, "message_field_training": "use"},
        None,
        {
            "talk": [
                {"by": "boss", "is": "q"},
                {"by": "gpt", "is": "x", "use": False},
                {"by": "gpt", "is": "a"},
            ]
        },
        [("user", "q"), ("assistant", "x"), ("assistant", "a")],
    ),
]


@pytest.mark.parametrize(("entry", "rl", "record", "wanted"), AXOLOTL_ROWS)
def test_rows_of_axolotls_types(
    entry: dict[str, Any], rl: str | None, record: dict[str, Any], wanted: Any
) -> None:
    (section,) = axolotl_sets([{"path": "x.jsonl", **entry}], rl).sets
    content: Any = said(section, record)
    assert (content.text if isinstance(wanted, str) else spoken(content)) == wanted
    if "message_field_training" in entry:
        assert content.weights == (1, 0, 1)


@pytest.mark.parametrize(
    ("kind", "rl", "record"),
    [
        ("chatml.intel", "dpo", {"system": "s", "question": "q", "chosen": "a", "rejected": "b"}),
        ("llama3.icr", "dpo", {"system": "s", "input": "q", "chosen": "a", "rejected": "b"}),
        (
            "chatml.argilla",
            "dpo",
            {"system": "s", "instruction": "q", "chosen_response": "a", "rejected_response": "b"},
        ),
        ("chatml.prompt_pairs", "dpo", {"system": "s", "prompt": "q", "chosen": "a", "rejected": "b"}),
        ("bradley_terry.chat_template", None, {"system": "s", "input": "q", "chosen": "a", "rejected": "b"}),
        ("chatml.intel", "kto", {"system": "s", "question": "q", "completion": "a", "label": True}),
        ("chatml.argilla", "kto", {"system": "s", "instruction": "q", "completion": "a", "label": True}),
    ],
)
def test_judged_rows_of_axolotls_types(kind: str, rl: str | None, record: dict[str, Any]) -> None:
    (section,) = axolotl_sets([{"path": "x.jsonl", "type": kind}], rl).sets
    content: Any = said(section, record)
    assert [(m["role"], m["content"]) for m in content.context] == [("system", "s"), ("user", "q")]
    assert [answer[-1]["content"] for answer in content.answers] == (["a"] if rl == "kto" else ["a", "b"])


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        ({"path": "p", "type": "jeopardy"}, "cannot be read: it writes `what is`"),
        ({"path": "p", "type": "context_qa.load_v2"}, "in words of its own"),
        ({"path": "p", "type": "mine.transform"}, "is not known here; it may be code"),
        ({"type": "alpaca"}, "has no `path`"),
        ({"path": "p", "type": "alpaca", "split": 3}, "`split` must be text"),
        ({"path": "p", "type": "alpaca", "data_files": {"train": "x"}}, "data_files must be names"),
        (7, "is no entry with a `path`"),
    ],
)
def test_an_axolotl_entry_that_cannot_be_read(entry: Any, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        axolotl_sets([entry])


def test_every_key_of_an_axolotl_entry_is_read_or_answered_for() -> None:
    entry = {
        "path": "org/name", "type": "chat_template", "name": "en", "split": "train[:20%]", "revision": "v2",
        "shards": 10, "train_on_eos": "all", "drop_system_message": True, "eot_tokens": ["x"], "field_mesages": "m",
        "trust_remote_code": False, "chat_template_kwargs": {"enable_thinking": False}, "ds_type": None,
    }  # fmt: skip
    found = axolotl_sets([entry])
    assert found.sets[0].path == "hf:org/name@v2"
    assert (found.sets[0].subset, found.sets[0].split) == ("en", "train[:20%]")
    assert found.settings == {"template_args": {"enable_thinking": False}}
    for key in ("shards", "train_on_eos", "drop_system_message"):
        assert any(f"{key}" in text and "no counterpart" in text for text in found.missing)
    assert any("`field_mesages` is not known; did you mean field_messages" in text for text in found.missing)
    assert any("eot_tokens is not needed" in text for text in found.notes) and len(found.missing) == 4
    files = axolotl_sets([{"path": "json", "type": "alpaca", "data_files": ["a.jsonl", "b.jsonl"]}]).sets
    assert [section.path for section in files] == ["a.jsonl", "b.jsonl"]
    inside = axolotl_sets([{"path": "org/name", "type": "alpaca", "data_files": "d/a.jsonl"}]).sets
    assert [section.path for section in inside] == ["hf:org/name/d/a.jsonl"]
