"""Go itself writes what our reading of Go's template language writes, of the templates that Modelfiles get."""

import json
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from chat_samples import CHATML
from luthier.errors import ModelError
from luthier.export.ollama.go import GoTemplate
from luthier.export.ollama.proof import _chat, ollama_values
from luthier.export.ollama.template import Made
from nasty_templates import NASTY
from ollama_templates import REAL, made, shared

SOURCE = Path(__file__).with_name("ollama_text.go")
Go = Callable[[list[dict]], list[str]]
pytestmark = pytest.mark.skipif(shutil.which("go") is None, reason="the language Go is not installed")


@pytest.fixture(scope="module")
def in_go(tmp_path_factory: pytest.TempPathFactory) -> Go:
    """Runs templates in Go."""
    program = tmp_path_factory.mktemp("go") / "ollama_text"
    subprocess.run(["go", "build", "-o", str(program), str(SOURCE)], check=True, capture_output=True)

    def run(asked: list[dict]) -> list[str]:
        lines = "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in asked)
        done = subprocess.run([str(program)], input=lines, check=True, capture_output=True, text=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def compare(found: Made, in_go: Go, *, tries: int = 40) -> None:
    draw = random.Random(4)
    chats = [_chat(draw, found.shape) for _ in range(tries)]
    values = [ollama_values(chat["messages"], chat["tools"], chat["think"]) for chat in chats]
    told = in_go([{"template": found.source, "values": one} for one in values])
    assert told == [GoTemplate(found.source).run(one) for one in values]
    assert not any(text.startswith(("refused: ", "failed: ")) for text in told)


@pytest.mark.parametrize("name", REAL)
def test_templates_of_real_models(name: str, in_go: Go) -> None:
    compare(made(shared(name)), in_go)


@pytest.mark.parametrize("name", ["chatml", *sorted(NASTY)])
def test_our_own_templates(name: str, in_go: Go) -> None:
    source = CHATML if name == "chatml" else NASTY[name][0] if isinstance(NASTY[name], tuple) else NASTY[name]
    try:
        found = made(source)
    except ModelError:
        pytest.skip("it cannot be expressed, which is refused")
    compare(found, in_go)


def test_go_is_really_asked(in_go: Go) -> None:
    values = ollama_values([{"role": "user", "content": "a < b"}])
    asked = ["{{ range .Messages }}{{ json .Content }}{{ end }}", "{{ .Nowhere.Else }}", "{{ if }}"]
    escaped, failed, refused = in_go([{"template": one, "values": values} for one in asked])
    assert escaped == '"a \\u003c b"'
    assert failed.startswith("failed: ") and refused.startswith("refused: ")
