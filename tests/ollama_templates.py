"""Templates of models as Ollama's, for tests."""

from datetime import datetime

import pytest

from chat_samples import SHARED
from luthier.export.ollama.template import Made, made_template

DAY = datetime(2026, 2, 3)
REAL = ("qwen2_5", "qwen3", "qwen3_instruct_2507", "llama3_1", "phi3", "gemma", "deepseekv3")
"""Files of `shared/templates` that can be expressed."""


def made(source: str, *, adds_bos: bool = False, **variables: object) -> Made:
    """What a Modelfile gets for a chat template."""
    return made_template(source, now=DAY, bos="<s>", adds_bos=adds_bos, eos="</s>", variables=variables)


def shared(name: str) -> str:
    """A file of `shared/templates`; the test is skipped without it."""
    file = SHARED / f"{name}.jinja"
    if not file.is_file():
        pytest.skip("the folder of templates is not here")
    return file.read_text()
