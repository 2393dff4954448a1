"""The page about adapters of peft knows every type, those that do not work too."""

import re

import pytest

from luthier.config.peft_types import REFUSED, peft_types, prompt_types
from training_parts import ROOT

pytest.importorskip("peft")
PAGE = (ROOT / "docs" / "peft.md").read_text(encoding="utf-8")
MERGES = dict(re.findall(r"^\| `(\w+)`[^|]*\|[^|]*\| ([^|]*) \|$", PAGE, re.MULTILINE))


def test_every_type_is_in_a_table() -> None:
    assert set(MERGES) == (peft_types() or {}).keys() - REFUSED.keys()
    assert [name for name in REFUSED if f"`{name}`" not in PAGE] == []
    assert {name for name, merges in MERGES.items() if merges == "no"} >= prompt_types() - REFUSED.keys()
