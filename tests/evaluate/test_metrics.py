"""Laws of the generation metrics: perfection, symmetry, bounds, and what counts as the same JSON."""

import json
import subprocess
import sys
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.errors import ConfigError, DataError
from luthier.evaluate import metrics
from luthier.evaluate.metrics import Scores, find, names, score, usual
from luthier.evaluate.metrics._json import Json, read_json, same
from luthier.evaluate.metrics.exact_match import matches

LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)
# Few keys and values, so that predictions and references agree now and then.
OBJECTS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 2), max_size=4)
TEXTS = OBJECTS.map(json.dumps) | VALUES.map(json.dumps) | st.text(max_size=8)
ROWS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8)


def scored(rows: list[tuple[str, str]]) -> Scores:
    return score([row[0] for row in rows], [row[1] for row in rows])


def reversed_keys(value: Json) -> Json:
    """The same JSON with the keys of every object the other way round."""
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return [reversed_keys(item) for item in value] if isinstance(value, list) else value


@given(st.lists(TEXTS, min_size=1, max_size=6))
def test_a_text_agrees_with_itself(texts: list[str]) -> None:
    values = score(texts, texts).values
    assert values["exact_match"] == 1
    assert set(values.values()) == {1.0}


@given(ROWS)
def test_every_number_is_a_fraction_named_after_its_metric(rows: list[tuple[str, str]]) -> None:
    for name in usual():
        found = find(name)(*map(list, zip(*rows, strict=True)))
        assert all(0 <= value <= 1 for value in found.values())
        assert all(key == name or key.startswith(f"{name}/") for key in found)


@given(ROWS)
def test_what_rows_add_up_to_is_the_number_over_all_rows(rows: list[tuple[str, str]]) -> None:
    for name in usual():
        found, sums = find(name).both(*map(list, zip(*rows, strict=True)))
        assert (sums is None) == (not found)
        if sums is not None:
            assert sums.estimate == pytest.approx(found[name]) and len(sums) == len(rows)


@given(ROWS, st.randoms())
def test_the_order_of_rows_does_not_matter(rows: list[tuple[str, str]], random: Random) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert scored(rows) == scored(shuffled)
    assert scored(rows).table() == scored(shuffled).table()


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=6))
def test_key_order_and_spacing_do_not_matter(rows: list[tuple[Json, Json]]) -> None:
    plain = [(json.dumps(left), json.dumps(right)) for left, right in rows]
    other = [
        (
            f" {json.dumps(reversed_keys(left), indent=2)}\n",
            json.dumps(reversed_keys(right), separators=(",", ":")),
        )
        for left, right in rows
    ]
    assert scored(plain) == scored(other)


@given(ROWS)
def test_f1_is_the_harmonic_mean_of_precision_and_recall(rows: list[tuple[str, str]]) -> None:
    values = scored(rows).values
    for key in (key for key in values if key.startswith("field_f1")):
        precision, recall = (values[key.replace("f1", other, 1)] for other in ("precision", "recall"))
        mean = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        assert values[key] == pytest.approx(mean, abs=1e-12)


@given(st.lists(st.tuples(OBJECTS, OBJECTS), min_size=1, max_size=6))
def test_precision_of_a_swap_is_recall(rows: list[tuple[dict[str, int], dict[str, int]]]) -> None:
    left, right = ([json.dumps(row[side]) for row in rows] for side in (0, 1))
    there, back = score(left, right).values, score(right, left).values
    assert there["field_precision"] == back["field_recall"]
    assert there["field_f1"] == back["field_f1"]
    assert there["exact_match"] == back["exact_match"]


@given(st.lists(st.tuples(OBJECTS, OBJECTS), min_size=1, max_size=6))
def test_fields_agree_with_a_count_of_pairs(rows: list[tuple[dict[str, int], dict[str, int]]]) -> None:
    """Oracle: an object as a set of (row, key, value) facts."""
    said = {(i, key, value) for i, (answer, _) in enumerate(rows) for key, value in answer.items()}
    true = {(i, key, value) for i, (_, target) in enumerate(rows) for key, value in target.items()}
    values = scored([(json.dumps(answer), json.dumps(target)) for answer, target in rows]).values
    for key in {fact[1] for fact in true}:
        said_k, true_k = ({fact for fact in facts if fact[1] == key} for facts in (said, true))
        assert values[f"field_f1/{key}"] == pytest.approx(
            2 * len(said_k & true_k) / (len(said_k) + len(true_k))
        )
    if said or true:
        assert values["field_f1"] == pytest.approx(2 * len(said & true) / (len(said) + len(true)))
    if said:
        assert values["field_precision"] == pytest.approx(len(said & true) / len(said))
    if true:
        assert values["field_recall"] == pytest.approx(len(said & true) / len(true))


def test_hand_example() -> None:
    references = ['{"a": 1, "b": "x"}', '{"a": 2}', '{"a": 3, "c": null}', "plain words"]
    predictions = ['{"b": "x", "a": 1.0}', '{"a": 2, "d": 9}', '```json\n{"a": 3}\n```', " plain words\n"]
    values = score(predictions, references).values
    assert values.pop("exact_match") == 2 / 4
    assert values.pop("json_valid") == 2 / 3
    assert values.pop("field_precision") == 3 / 4
    assert values.pop("field_recall") == 3 / 5
    assert values.pop("field_f1") == 6 / 9
    assert values.pop("field_f1/a") == 4 / 5
    assert values.pop("field_f1/b") == 1
    assert values.pop("field_f1/c") == 0
    assert values.pop("field_precision/a") == 1
    assert values.pop("field_recall/a") == 2 / 3
    assert {key: values[key] for key in values if key.endswith("/c")} == {
        "field_precision/c": 0,
        "field_recall/c": 0,
    }
    assert not any(key.endswith("/d") for key in values)


@pytest.mark.parametrize(
    ("predictions", "expected"),
    [(["{}"], 1.0), (['{"a": 1}'], 0.0), (["no JSON"], 1.0)],
)
def test_nothing_wanted(predictions: list[str], expected: float) -> None:
    values = score(predictions, ["{}"]).values
    assert [values[f"field_{name}"] for name in ("precision", "recall", "f1")] == [expected] * 3


@pytest.mark.parametrize("prediction", ["", "{}", "[]", "nothing"])
def test_nothing_given(prediction: str) -> None:
    values = score([prediction], ['{"a": 1}']).values
    assert [values[f"field_{name}"] for name in ("precision", "recall", "f1")] == [0.0] * 3


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "{'a': 1}",
        '```json\n{"a": 1}\n```',
        '{"a": 1} is the ticket',
        'Ticket: {"a": 1}',
        '{"a": 1}{"a": 1}',
        '{"a": 1,}',
        '{"a": 1, "a": 1}',
        '[{"b": {"a": 1, "a": 2}}]',
        "NaN",
        '{"a": Infinity}',
        "[-Infinity]",
        "1e400",
        '{"a": -1e999}',
        "1" * 5000,
        "01",
        '"two\nlines"',
        "\ufeff{}",
        "[" * 100_000 + "]" * 100_000,
        '{"a":' * 100_000 + "1" + "}" * 100_000,
    ],
)
def test_what_is_not_json(text: str) -> None:
    assert read_json(text) is None
    assert score([text], ["{}"]).values["json_valid"] == 0


@given(VALUES)
def test_what_json_writes_is_read(value: Json) -> None:
    document = read_json(json.dumps(value))
    assert document is not None
    assert same(document.value, value)


@given(VALUES, VALUES)
def test_same_is_symmetric_and_agrees_with_sorted_text(left: Json, right: Json) -> None:
    assert same(left, right) == same(right, left)
    equal_text = json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True)
    if equal_text:
        assert same(left, right)
    elif "." not in json.dumps([left, right]) and "e" not in json.dumps([left, right]):
        assert not same(left, right)  # without floats, another text is another value


@pytest.mark.parametrize(
    ("prediction", "reference", "equal"),
    [
        ("1", "1.0", True),
        ("49.90", "49.9", True),
        ("true", "1", False),
        ("[false]", "[0]", False),
        ("null", "false", False),
        ("[1, 2]", "[2, 1]", False),
        ("[1]", "[1, 1]", False),
        ("{}", "[]", False),
        ('{"a": null}', "{}", False),
        ('{"a": "1"}', '{"a": 1}', False),
        (" yes\n", "yes", True),
        ("Yes", "yes", False),
        ("a  b", "a b", False),
        ('{"a": 1, "a": 1}', '{"a": 1}', False),
        ("{'a': 1}", "{'a': 1}", True),
    ],
)
def test_what_matches(prediction: str, reference: str, equal: bool) -> None:
    assert matches(prediction, reference) is equal
    assert matches(reference, prediction) is equal


def test_deep_but_readable_json_is_compared() -> None:
    """Comparing must go as deep as reading does, from whatever depth of the stack it is called."""
    depth = 1000
    while read_json("[" * depth + "]" * depth) is None:
        depth -= 1
    inner: Json = []
    for _ in range(100_000):
        inner = [inner]
    assert depth > 100
    assert matches("[" * depth + "]" * depth, " " + "[" * depth + "]" * depth)
    assert same(inner, [inner]) is False
    while inner:  # taken apart by hand, layer by layer
        inner = inner[0]  # pyright: ignore[reportIndexIssue, reportOptionalSubscript, reportArgumentType, reportCallIssue]


def test_json_metrics_keep_quiet_about_plain_text() -> None:
    assert set(score(["a", "{}"], ["a", "b"]).values) == {"exact_match"}


def test_asking_for_some_metrics() -> None:
    assert set(score(["{}"], ["{}"], ["json_valid"]).values) == {"json_valid"}


def test_table_and_dictionary() -> None:
    result = score(['{"b": 1, "a": 2}'] * 2, ['{"b": 1, "a": 3}', '{"b": 1}'])
    assert result.table() == [
        ("exact match", "0.000"),
        ("field f1", "0.571"),
        ("field precision", "0.500"),
        ("field recall", "0.667"),
        ("json valid", "1.000"),
        ("field f1: b", "1.000"),
        ("field f1: a", "0.000"),
    ]
    assert ("field recall: b", "1.000") in result.table(details=["field_recall"])
    flat = result.to_dict()
    assert flat["num_rows"] == 2
    assert json.loads(json.dumps(flat)) == flat


def test_every_file_in_the_folder_is_a_metric() -> None:
    files = Path(str(metrics.__file__)).parent.glob("*.py")
    assert names() == sorted(file.stem for file in files if not file.stem.startswith("_"))
    assert {"exact_match", "json_valid", "field_f1", "field_precision", "field_recall"} <= set(names())
    for name in usual():
        assert find(name)(['{"a": 1}'], ['{"a": 1}'])[name] == 1


def test_unknown_metric() -> None:
    with pytest.raises(ConfigError) as caught:
        score(["a"], ["a"], ["exact_mtach"])
    assert str(caught.value) == (
        "there is no metric 'exact_mtach'; did you mean 'exact_match'? known are: " + ", ".join(names())
    )


def test_unpaired_rows() -> None:
    with pytest.raises(DataError) as caught:
        score(["a"], ["a", "b"])
    assert str(caught.value) == (
        "1 predictions cannot be scored against 2 references, since they are compared in pairs; "
        "give one prediction for each reference, an empty one where the model said nothing"
    )


def test_no_rows() -> None:
    with pytest.raises(DataError) as caught:
        score([], [])
    assert str(caught.value) == "there are no rows to score; give at least one prediction with its reference"


def test_scoring_needs_no_torch() -> None:
    code = (
        "import sys; from luthier.evaluate.metrics import score; score(['a'], ['a']); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
