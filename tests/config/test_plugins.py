"""The options of methods and optimizers: known without torch, checked like the tree, current."""

import importlib
import importlib.util
import sys
import types
from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field, TypeAdapter, ValidationError

from luthier.config import config_from_dict
from luthier.config.faults import section_class
from luthier.config.plugins import (
    KINDS,
    annotation,
    describe,
    is_own_file,
    known_plugins,
    load_plugin,
    options_model,
    plugin_class,
    resolved_options,
)
from luthier.config.settings import settings
from luthier.config.tree import Config
from luthier.errors import ConfigError

BASE = {"model": "demo:tiny", "data": "a.jsonl"}


@settings
class Everything:
    """A plugin with an option of every kind."""

    ratio: Annotated[float, Field(gt=0, le=1)]
    """Bounded and required."""
    count: Annotated[int, Field(ge=1, lt=9)] = 2
    """Bounded."""
    kind: Literal["a", "b"] = "a"
    """A choice."""
    only: Literal["x"] = "x"
    """One choice."""
    flag: bool = False
    """A boolean."""
    text: Annotated[str, Field(min_length=2, pattern="^[a-z]*$")] = "ab"
    """Text."""
    maybe: float | None = 1.0
    """Null has a meaning of its own."""
    names: list[str] = Field(default_factory=list)
    """A computed default."""
    pair: tuple[float, float] = (0.9, 0.99)
    """Exactly two."""
    extra: dict[str, int] = Field(default_factory=dict)
    """A mapping."""


SCHEMA = TypeAdapter(Everything).json_schema()


def written(tmp_path: Path, name: str, text: str) -> types.ModuleType:
    """A package of its own with one module in it."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "first.py").write_text(text)
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)
    return package


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes packages whose modules are forgotten after the test."""
    made = []

    def make(text: str) -> types.ModuleType:
        name = f"plugins_of_a_test_{len(made)}"
        made.append(name)
        module = written(tmp_path, name, text)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    yield make
    for name in [name for name in sys.modules if name.rpartition(".")[0] in made]:
        del sys.modules[name]


PLUGIN = '''"""A module."""
from luthier.config.settings import settings


@settings
class First:
    """What it does."""

    beta: float = 0.5
    """How much."""
'''


def test_the_description_in_the_package_is_current():
    """Needs torch, as the files themselves do. If this fails, run `luthier schema --update-plugins`."""
    for section, name in KINDS.items():
        assert describe(importlib.import_module(f"luthier.{name}")) == known_plugins()[section]


def test_every_option_has_a_docstring_and_a_name_of_its_own():
    for section in KINDS:
        own = section_class(Config.model_fields[section].annotation)
        assert own is not None
        for name, schema in known_plugins()[section].items():
            assert schema.get("description"), name
            for option, field in schema["properties"].items():
                assert field.get("description"), f"{name}.{option}"
                assert option not in own.model_fields, f"{name}.{option} is a key of the section itself"


def test_options_are_resolved_with_their_defaults():
    config = config_from_dict({**BASE, "optim": {"lr": 1e-3, "beta1": 0.8}})
    assert config.optim.options == {"beta1": 0.8, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0}
    assert config.method.options == {"label_smoothing": 0.0, "z_loss": 0.0, "token_metrics": False}


def test_the_resolved_options_build_the_plugin():
    beside = {"quant": {"lora": {}, "quant": "nf4"}, "qat": {"qat": "q4_0"}, "tune": {"tune": "lisa"}}
    for section in KINDS:
        chosen = getattr(config_from_dict({**BASE, **beside.get(section, {})}), section)
        cls = load_plugin(importlib.import_module(f"luthier.{KINDS[section]}"), chosen.name)
        cls(**chosen.options)


def test_options_of_an_own_file_pass_unchecked():
    assert is_own_file("./mine.py") and not is_own_file("sft") and not is_own_file(3)
    config = config_from_dict({**BASE, "method": {"name": "./mine.py", "betta": [1, None]}})
    assert config.method.options == {"betta": [1, None]}
    config = config_from_dict({**BASE, "optim": {"name": "./mine.py", "lr": 0.1, "betta": 2}})
    assert config.optim.options == {"betta": 2} and config.optim.lr == 0.1


def test_an_unknown_option_is_named_with_the_nearest():
    having_beta = [f"method: {n}" for n, p in known_plugins()["method"].items() if "beta" in p["properties"]]
    assert "method: dpo" in having_beta
    with pytest.raises(ConfigError) as caught:
        config_from_dict({**BASE, "optim": {"weight_decy": 1, "lrr": 1}, "method": {"beta": 1}})
    assert caught.value.faults == [
        f"configuration: unknown key method.beta; only {', '.join(having_beta)} has it",
        "configuration: unknown key optim.weight_decy; did you mean optim.weight_decay?",
        "configuration: unknown key optim.lrr; did you mean optim.lr?",
    ]


def test_an_unknown_optimizer_lists_the_known_ones():
    with pytest.raises(ConfigError) as caught:
        config_from_dict({**BASE, "optim": {"name": "adam", "anything": 1}})
    known = ", ".join(sorted(known_plugins()["optim"]))
    assert caught.value.faults == [
        f'configuration: optim.name is "adam"; known: {known}, or ./FILE.py for one of your own; did you mean adamw?'
    ]


GOOD = [
    {"ratio": 1},
    {"ratio": 0.5, "count": 8, "kind": "b", "flag": True, "text": "abc", "maybe": None, "names": ["a"]},
    {"ratio": 0.5, "pair": [0.1, 0.2], "extra": {"a": 1}},
    {"ratio": 0.5, "count": None, "names": None},
]
BAD = [
    {},
    {"ratio": 0},
    {"ratio": "0.5"},
    {"ratio": 1, "count": 9},
    {"ratio": 1, "count": 1.0},
    {"ratio": 1, "count": True},
    {"ratio": 1, "kind": "c"},
    {"ratio": 1, "only": "y"},
    {"ratio": 1, "flag": "yes"},
    {"ratio": 1, "text": "A"},
    {"ratio": 1, "text": "a"},
    {"ratio": 1, "maybe": "x"},
    {"ratio": 1, "names": "a"},
    {"ratio": 1, "names": [1]},
    {"ratio": 1, "pair": [0.1]},
    {"ratio": 1, "pair": [0.1, 0.2, 0.3]},
    {"ratio": 1, "extra": []},
    {"ratio": 1, "other": 1},
]


@pytest.mark.parametrize("options", GOOD)
def test_the_model_from_the_schema_accepts_what_the_class_accepts(options):
    resolved = resolved_options(SCHEMA, options_model(SCHEMA).model_validate(options))
    given = {key: value for key, value in options.items() if value is not None or key == "maybe"}
    assert Everything(**resolved) == Everything(**given)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("options", BAD)
def test_the_model_from_the_schema_refuses_what_does_not_fit(options):
    with pytest.raises(ValidationError):
        options_model(SCHEMA).model_validate(options)


def test_a_type_that_the_schema_cannot_name_is_left_to_the_plugin():
    assert annotation({}) is not None
    model = options_model({"properties": {"free": {"default": 1}}})
    assert model.model_validate({"free": object}).model_dump()["free"] is object


def test_settings_are_frozen_checked_and_by_keyword():
    assert Everything(ratio=0.5).count == 2
    with pytest.raises(ValidationError):
        Everything(ratio=2)
    with pytest.raises(ValidationError):
        Everything(ratio=0.5, betta=1)  # pyright: ignore[reportCallIssue]
    with pytest.raises(AttributeError):
        Everything(ratio=0.5).count = 3  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises((TypeError, ValidationError)):
        Everything(0.5)  # pyright: ignore[reportCallIssue]
    assert SCHEMA["properties"]["count"]["description"] == "Bounded."


def test_a_file_with_one_settings_class_is_a_plugin(package):
    module = package(PLUGIN)
    folder = Path(module.__path__[0])
    (folder / "base.py").write_text("raise RuntimeError('never imported')")
    (folder / "_private.py").write_text("raise RuntimeError('never imported')")
    (folder / "maths.py").write_text("def double(x):\n    return 2 * x\n")
    described = describe(module)
    assert list(described) == ["first"]
    assert described["first"]["properties"] == {
        "beta": {"default": 0.5, "description": "How much.", "type": "number"}
    }
    cls = load_plugin(module, "first")
    assert cls(beta=1).beta == 1.0
    with pytest.raises(ConfigError, match=r'has no "second"; known: first$'):
        load_plugin(module, "second")
    with pytest.raises(ConfigError, match="maths holds no class with @settings"):
        load_plugin(module, "maths")


def test_an_imported_class_is_not_the_modules_own(package):
    module = package(PLUGIN)
    cls = load_plugin(module, "first")
    other = types.ModuleType("other")
    other.First = cls  # type: ignore[attr-defined]
    assert plugin_class(other) is None


def test_two_classes_in_one_file_are_refused(package):
    module = package(PLUGIN + "\n\n@settings\nclass Second:\n    pass\n")
    with pytest.raises(ConfigError, match=r"defines several @settings classes \(First, Second\); keep one"):
        describe(module)


def test_an_option_that_no_config_file_can_hold_is_refused(package):
    text = "import enum\n" + PLUGIN.replace("float = 0.5", "Kind = Kind.a")
    text = text.replace("@settings", "class Kind(enum.Enum):\n    a = 'a'\n\n\n@settings")
    with pytest.raises(ConfigError, match="First has options of the type Kind; use numbers, text, booleans"):
        describe(package(text))


def test_an_own_file_is_loaded_by_its_path(tmp_path):
    (tmp_path / "mine.py").write_text(PLUGIN)
    cls = load_plugin(types.ModuleType("unused"), str(tmp_path / "mine.py"))
    assert cls.__name__ == "First" and cls().beta == 0.5
    with pytest.raises(ConfigError, match=r"other\.py: there is no such Python file"):
        load_plugin(types.ModuleType("unused"), str(tmp_path / "other.py"))
