"""Laws of `luthier import` that hold for every key and every value of every tool."""

import json
import random
from difflib import SequenceMatcher

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luthier.config.load import config_from_dict, load_config
from luthier.errors import ConfigError
from luthier.migrate.findings import Imported, Kind
from luthier.migrate.tools import Refused
from luthier.migrate.written import written
from migrate_parts import SMALL, TABLES, imported, small

TOOLS = sorted(SMALL)
FIXED = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 10**6),
    st.floats(-10, 10),
    st.sampled_from(["", "auto", "none", "2e-5", "1_000", "yes", "a,b", "${seed}", "é\n#: {", "[x"]),
    st.lists(
        st.one_of(st.text(max_size=5), st.integers(), st.dictionaries(st.just("path"), st.text(max_size=3)))
    ),
    st.dictionaries(
        st.sampled_from(["name", "path", "r", "type"]), st.one_of(st.integers(), st.text(max_size=4))
    ),
)


@st.composite
def known_keys(draw) -> tuple[str, str]:
    tool = draw(st.sampled_from(TOOLS))
    return tool, draw(st.sampled_from(sorted(TABLES[tool])))


@FIXED
@given(which=known_keys(), value=ODD)
def test_any_value_of_any_key_is_imported_or_refused_with_a_reason(tmp_path, which, value):
    """Nothing crashes, every key gets its line, and what is written reads back to the same configuration."""
    tool, key = which
    values = SMALL[tool] | {key: value}
    try:
        result = imported(tmp_path, values)
    except (Refused, ConfigError) as refused:
        assert len(str(refused)) > 20
        return
    assert {name for name, given in values.items() if given is not None} <= top_level(result)
    file = tmp_path / "run.yaml"
    file.write_text(written(result), encoding="utf-8")
    assert load_config(file) == config_from_dict(result.values)


@FIXED
@given(which=known_keys(), seed=st.integers(0, 2**31))
def test_a_key_with_null_counts_as_absent(tmp_path, which, seed):
    tool, key = which
    if key in SMALL[tool]:
        return
    rows = list({**SMALL[tool], key: None}.items())
    random.Random(seed).shuffle(rows)
    with_null, without = imported(tmp_path, dict(rows)), imported(tmp_path, SMALL[tool])
    assert with_null.values == without.values
    assert {(f.key, f.kind, f.text) for f in with_null.findings} == {
        (f.key, f.kind, f.text) for f in without.findings
    }


@FIXED
@given(which=known_keys(), data=st.data())
def test_a_misspelt_key_is_found_and_the_right_one_named(tmp_path, which, data):
    tool, key = which
    wrong = data.draw(misspelt(key))
    if wrong in TABLES[tool] or not wrong:
        return
    result = imported(tmp_path, small(tool) | {wrong: 1})
    found = [finding for finding in result.findings if finding.key == wrong]
    assert [finding.kind for finding in found] == [Kind.UNKNOWN]
    if len(key) < 5:
        return  # a short word may be near to nothing
    assert "did you mean " in found[0].text
    meant = found[0].text.rpartition("did you mean ")[2].rstrip("?")
    assert meant in TABLES[tool]
    assert alike(wrong, meant) >= alike(wrong, key) - 1e-9


@st.composite
def misspelt(draw, key: str) -> str:
    """The key with a letter left out, doubled, or two swapped."""
    place = draw(st.integers(0, len(key) - 1))
    change = draw(st.sampled_from(["leave out", "double", "swap"]))
    if change == "leave out":
        return key[:place] + key[place + 1 :]
    if change == "double":
        return key[:place] + key[place] + key[place:]
    return key[:place] + key[place + 1 : place + 2] + key[place : place + 1] + key[place + 2 :]


def alike(word: str, other: str) -> float:
    return SequenceMatcher(None, other.lower(), word.lower()).ratio()


def top_level(result: Imported) -> set[str]:
    return {finding.key.partition(".")[0] for finding in result.findings}


@pytest.mark.parametrize("tool", TOOLS)
def test_the_order_of_keys_says_nothing(tmp_path, tool):
    rows = list(SMALL[tool].items())
    expected = imported(tmp_path, dict(rows)).values
    for seed in range(5):
        random.Random(seed).shuffle(rows)
        assert imported(tmp_path, dict(rows)).values == expected


@FIXED
@given(
    tool=st.sampled_from(["llamafactory", "axolotl"]),
    size=st.integers(1, 64),
    steps=st.integers(1, 64),
    longest=st.integers(16, 20000),
    processes=st.integers(1, 16),
)
def test_tokens_of_a_step_are_the_product_that_is_shown(tmp_path, tool, size, steps, longest, processes):
    names = {
        "llamafactory": ("per_device_train_batch_size", "cutoff_len"),
        "axolotl": ("micro_batch_size", "sequence_len"),
    }
    rows, length = names[tool]
    changes = {rows: size, length: longest, "gradient_accumulation_steps": steps}
    result = imported(tmp_path, small(tool, **changes), processes=processes)
    train = result.values["train"]
    assert train["tokens_per_step"] == size * steps * longest * processes
    note = result.notes["train.tokens_per_step"][0]
    for number in (size, steps, longest, processes, train["tokens_per_step"]):
        assert f"{number:,}" in note
    config = config_from_dict(result.values)
    assert config.max_length == longest <= config.train.micro_tokens


@FIXED
@given(lr=st.floats(1e-7, 1.0), style=st.sampled_from(["{!r}", '"{!r}"', "{:.6e}"]))
def test_numbers_are_read_however_they_are_written(tmp_path, lr, style):
    """`2e-5` without a dot and numbers in quotes are text to other readers of YAML, but they mean numbers."""
    text = style.format(lr)
    source = small("axolotl", learning_rate=None) | {"learning_rate": "@"}
    file = tmp_path / "source.yaml"
    file.write_text(json.dumps(source).replace('"@"', text), encoding="utf-8")
    from luthier.migrate.tools import import_file

    assert import_file(file).values["optim"]["lr"] == float(text.strip('"'))


@FIXED
@given(
    name=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30),
    module=st.from_regex(r"[a-z_.\\()|\[\]d+]{1,20}", fullmatch=True),
)
def test_text_survives_the_way_through_yaml(tmp_path, name, module):
    """Names that look like numbers, comments or lists stay what they are."""
    values = small("axolotl", adapter="lora", lora_r=8, lora_target_modules=[module])
    values["datasets"] = [{"path": "rows.jsonl", "type": "alpaca", "name": name}]
    try:
        result = imported(tmp_path, values)
    except Refused:
        return
    file = tmp_path / "run.yaml"
    file.write_text(written(result), encoding="utf-8")
    assert load_config(file) == config_from_dict(result.values)
    assert load_config(file).data.sets[0].subset == name
