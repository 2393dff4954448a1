"""The pages of the methods say what the files say, and every method has an example that is a valid config."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from luthier.config.load import load_config
from luthier.config.plugins import known_plugins

ROOT = Path(__file__).resolve().parents[2]
METHODS = sorted(known_plugins()["method"])


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("method_pages", ROOT / "tools" / "method_pages.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_up_to_date() -> None:
    """If this fails, run `python tools/method_pages.py`."""
    for name, text in generator().pages().items():
        assert (ROOT / "docs" / "methods" / name).read_text(encoding="utf-8") == text, name


@pytest.mark.parametrize("method", METHODS)
def test_a_page_says_where_the_method_is_from_what_it_reads_and_when_to_use_it(method: str) -> None:
    text = generator().pages()[f"{method}.md"]
    assert "loss = " in text and "## Data" in text and "## Settings" in text
    assert method == "sft" or "When:" in text
    for option, field in known_plugins()["method"][method]["properties"].items():
        assert f"`{option}`" in text and field["description"] in text


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_an_example(method: str) -> None:
    assert load_config(ROOT / "examples" / "methods" / f"{method}.yaml").method.name == method
