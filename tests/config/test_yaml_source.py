"""YAML with places: the core schema of YAML 1.2, repeated keys, plain words for what cannot be read."""

import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from luthier.config.places import Place, in_order
from luthier.config.source import MAX_VALUES, read_file, read_text, read_value
from luthier.errors import ConfigError

LINES = "but a configuration is `key: value` lines, such as `model: NAME`"


def fault(text: str) -> str:
    """The one fault in a text, whether it stops the reading or not."""
    try:
        faults = in_order(read_text(text, "run.yaml").faults)
    except ConfigError as error:
        faults = error.faults
    assert len(faults) == 1, faults
    return faults[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2e-4", 2e-4),
        ("1E5", 1e5),
        (".5", 0.5),
        ("1.", 1.0),
        ("+3", 3),
        ("-.inf", float("-inf")),
        (".INF", float("inf")),
        ("0x1F", 31),
        ("0o17", 15),
        ("012", 12),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("12:30", "12:30"),
        ("1_000", "1_000"),
        ("2024-01-01", "2024-01-01"),
        ("=", "="),
        ("'2e-4'", "2e-4"),
        ("[a, 2e-4, no]", ["a", 2e-4, "no"]),
        ("!!str 5", "5"),
        ("!!float 5", 5.0),
        ("demo:smollm2", "demo:smollm2"),
    ],
)
def test_scalars_follow_yaml_1_2(text, value):
    read = read_value(text)
    assert read == value
    assert type(read) is type(value)


def test_not_a_number_is_read():
    assert read_value(".nan") != read_value(".nan")


@given(st.floats(allow_nan=False))
def test_every_float_reads_back(number):
    assert read_value(repr(number).replace("inf", ".inf")) == number


@given(st.integers())
def test_every_integer_reads_back(number):
    assert read_value(str(number)) == number
    assert read_value(hex(number) if number >= 0 else "0") == max(number, 0)


def test_places_name_the_line_of_each_key():
    source = read_text(
        "model: x\ntrain:\n  epochs: 2\n\n  steps: 3\ndata:\n  path:\n    - a\n    - b\n", "run.yaml"
    )
    lines = {key: place.line for key, place in source.places.of_key.items()}
    assert lines == {
        ("model",): 1,
        ("train",): 2,
        ("train", "epochs"): 3,
        ("train", "steps"): 5,
        ("data",): 6,
        ("data", "path"): 7,
        ("data", "path", 0): 8,
        ("data", "path", 1): 9,
    }
    assert source.places.find(("train", "threads")) == Place("run.yaml", 2)
    assert source.places.find(("lora", "rank")) == Place("run.yaml")


def test_anchors_and_merges():
    text = "a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: {y: 4, <<: [*a, {x: 5, z: 6}]}\nd: *a\n"
    values = read_text(text, "run.yaml").values
    assert values == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 1, "y": 3},
        "c": {"x": 1, "y": 4, "z": 6},
        "d": {"x": 1, "y": 2},
    }


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "null", "{}"])
def test_nothing_is_an_empty_configuration(text):
    assert read_text(text, "run.yaml").values == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", "run.yaml:3: a is given twice, first in line 1; keep one of them"),
        ("a: {b: 1, b: 2}", "run.yaml:1: a.b is given twice, in the same line; keep one of them"),
        ("- 1", f"run.yaml:1: the file holds a list, {LINES}"),
        (
            "hello",
            f"run.yaml:1: the file holds a single value, {LINES}",
        ),
        ("a: 1\n\tb: 2", "run.yaml:2, column 1: there is a tab here; YAML is indented with spaces: b: 2"),
        (
            "a: b: c",
            "run.yaml:1, column 5: this `:` does not belong here; check the indentation, "
            "or put the text in quotes: a: b: c",
        ),
        ("x: 1\na: 'b\nc: 2", "run.yaml:2, column 4: a quote is opened and never closed: a: 'b"),
        (
            "a: [1,\n 2\nb: 3",
            "run.yaml:3, column 2: the list opened with `[` in line 1 goes on without `,` or `]`: b: 3",
        ),
        (
            "a: {b: 1\nc: 2",
            "run.yaml:2, column 2: the section opened with `{` in line 1 goes on without `,` or `}`: c: 2",
        ),
        (
            "a:\n  b: 1\n c: 2",
            "run.yaml:3, column 2: this does not line up with the lines above; check the indentation: c: 2",
        ),
        ("a: 1\nb\nc", "run.yaml:2, column 1: this key has no `:` behind it; write `key: value`: b"),
        ("a: *x", "run.yaml:1, column 4: this `*name` refers to no `&name` above it: a: *x"),
        (
            "a: 1\n---\nb: 1",
            "run.yaml:2, column 1: a second document starts here (`---`); "
            "one file holds one configuration: ---",
        ),
        ("a: @b", "run.yaml:1, column 4: text cannot start with this sign; put it in quotes: a: @b"),
        (
            'a: "C:\\q"',
            "run.yaml:1, column 8: this `\\` escape does not exist; use single quotes for text with "
            'backslashes: a: "C:\\q"',
        ),
        ("a: &a [*a]", "run.yaml:1: the anchor of a[0] contains itself"),
        ("a: \x07", "run.yaml:1, column 4: the character U+0007 is not allowed in YAML"),
        ("a: " + "9" * 5000, "run.yaml:1: a number of 5,000 digits is too long"),
        ("a: " + "[" * 3000, "run.yaml: is nested too deeply to be a configuration"),
        ('a: "\\UFFFFFFFF"', "run.yaml: is not YAML: Python int too large to convert to C int"),
        ("1: a", "run.yaml:1: the key 1 is not a name; put it in quotes if it is meant"),
        ("? [a]\n: 1", "run.yaml:1: a key must be a name, such as `train:`"),
        ("a: !!python/name:os.x x", "run.yaml:1: the tag !!python/name:os.x has no meaning here; remove it"),
        ("a: !mine {b: 1}", "run.yaml:1: the tag !mine has no meaning here; remove it"),
        ("a: !!int five", 'run.yaml:1: "five" is marked !!int, but is none'),
        ("a: {<<: 1}", "run.yaml:1: << takes a section or a list of sections, such as `<<: *name`"),
        ("%YAML 3.0\n---\na: 1", "run.yaml:1, column 1: this is not YAML: found incompatible YAML document "
         "(version 1.* is required): %YAML 3.0"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_said_in_plain_words(text, message):
    assert fault(text) == message


def test_several_unreadable_values_are_all_found():
    source = read_text("a: !x 1\nb: 1\nb: 2\n1: 3\n", "run.yaml")
    assert [text.partition(": ")[0] for text in in_order(source.faults)] == [
        "run.yaml:1",
        "run.yaml:3",
        "run.yaml:4",
    ]


def test_aliases_that_multiply_each_other_are_stopped():
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    message = fault("\n".join(lines))
    assert message.endswith(f"aliases expand to over {MAX_VALUES:,} values; write them out")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "run.yaml").write_text("model: x\n")
    with pytest.raises(ConfigError) as missing:
        read_file(tmp_path / "rum.yaml")
    assert str(missing.value) == (
        f"{tmp_path / 'rum.yaml'}: there is no such file; did you mean {tmp_path / 'run.yaml'}?"
    )
    with pytest.raises(ConfigError) as folder:
        read_file(tmp_path)
    assert str(folder.value) == f"{tmp_path}: this is a folder; give the YAML file itself"
    (tmp_path / "latin.yaml").write_bytes("model: x\nrun: caf\xe9\n".encode("latin-1"))
    with pytest.raises(ConfigError) as encoding:
        read_file(tmp_path / "latin.yaml")
    assert (
        str(encoding.value) == f"{tmp_path / 'latin.yaml'}:2: byte 0xE9 is not UTF-8; save the file as UTF-8"
    )
    with pytest.raises(ConfigError, match="cannot be read"):
        read_file(tmp_path / "nul\0.yaml")


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\xef\xbb\xbfmodel: x\r\ndata: y\r\n")
    assert read_file(tmp_path / "run.yaml").values == {"model": "x", "data": "y"}


PIECES = [
    "a",
    "b: ",
    ": ",
    "\n",
    "\n  ",
    "- ",
    "[",
    "]",
    "{",
    "}",
    ", ",
    "&x ",
    "*x",
    "<<: ",
    "!!int ",
    "!t ",
    "'",
    '"',
]
PIECES += [
    "#",
    "|\n",
    ">\n",
    "%",
    "---\n",
    "...\n",
    "?",
    "1",
    "2e-4",
    "\t",
    "\\U",
    "\\x",
    "~",
    "null",
    "é",
    "\0",
]
YAML_PIECES = st.sampled_from([*PIECES, "\ud800"])


@settings(deadline=None, max_examples=300)
@given(st.lists(YAML_PIECES, max_size=30).map("".join) | st.text(max_size=60))
@example("!!")
@example("? ")
@example("%TAG ! !\n--- !a")
def test_any_text_is_read_or_refused_by_config_error(text):
    try:
        source = read_text(text, "run.yaml")
    except ConfigError as error:
        assert all(message.startswith("run.yaml:") and "\n" not in message for message in error.faults)
    else:
        assert isinstance(source.values, dict)
        assert all(place.line for place in source.places.of_key.values())


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=40))
def test_any_bytes_are_read_or_refused_by_config_error(content):
    with tempfile.NamedTemporaryFile(suffix=".yaml") as file:
        Path(file.name).write_bytes(content)
        try:
            read_file(Path(file.name))
        except ConfigError as error:
            assert error.faults


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abcde"), PLAIN, max_size=4))
def test_json_like_yaml_reads_as_pyyaml_meant_it(values):
    """Where text is quoted, YAML 1.1 and 1.2 agree: PyYAML's own writer is the oracle."""
    text = yaml.safe_dump(values, default_style='"', allow_unicode=True)
    assert read_text(text, "run.yaml").values == yaml.safe_load(text)
