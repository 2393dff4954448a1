"""The page about adapters knows every way to start and every key of the section."""

from luthier.config.lora_section import LoraSection, known_inits
from training_parts import ROOT

PAGE = (ROOT / "docs" / "lora.md").read_text(encoding="utf-8")


def test_every_way_to_start_is_in_the_table() -> None:
    assert [name for name in known_inits() if f"| `{name}`" not in PAGE] == []


def test_every_key_of_the_section_is_told() -> None:
    assert [
        key for key in LoraSection.model_fields if f"`{key}" not in PAGE and f"lora.{key}" not in PAGE
    ] == []
