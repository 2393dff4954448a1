"""A model that gets a new head is loaded quietly, and only that load is quiet."""

import logging
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from luthier.errors import ModelError
from luthier.models.compat import without_load_report
from luthier.models.value_head import Head, load_with_head
from tiny_models import tiny_llama

LOGGER = logging.getLogger("transformers.modeling_utils")
HEAD = Head("score", ("score",))


class Told(logging.Handler):
    """Every warning of transformers about loading."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def told():
    handler = Told()
    LOGGER.addHandler(handler)
    yield handler.lines
    LOGGER.removeHandler(handler)


def test_a_new_head_is_not_told_as_missing_and_other_loads_are(tmp_path: Path, told: list[str]) -> None:
    tiny_llama().save_pretrained(tmp_path)
    before = list(LOGGER.filters)
    load_with_head(tmp_path, torch.float32, torch.device("cpu"), HEAD)
    assert told == [] and before == LOGGER.filters
    AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert any("LOAD REPORT" in line for line in told)


def test_a_load_that_fails_tells_its_report(tmp_path: Path, told: list[str]) -> None:
    tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="report"), without_load_report():
        LOGGER.warning("a LOAD REPORT")
        LOGGER.warning("another thing")
        assert told == ["another thing"]
        raise RuntimeError("see the report")
    assert told == ["another thing", "a LOAD REPORT"] and not LOGGER.filters


def test_lost_weights_are_still_an_error(tmp_path: Path, told: list[str]) -> None:
    model = tiny_llama()
    weights = {name: value for name, value in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ModelError, match="lacks weights"):
        load_with_head(tmp_path, torch.float32, torch.device("cpu"), HEAD)
