"""Rows of a reference, a better and a worse answer: read as such only where the set names the format."""

from typing import Any

import pytest

from luthier.config.data_section import SetSection
from luthier.data.adapt import adapt
from luthier.data.content import Answers
from luthier.data.convert import convert_row, formats_of
from luthier.data.sources import Row
from luthier.errors import DataError, RowRefused

ROW = {"prompt": "Greet.", "chosen": "Hello!", "rejected": "Hm.", "reference": "Welcome!", "margin": 1.5}
ASKED, SAID = {"role": "user", "content": "Greet."}, {"role": "assistant", "content": "Welcome!"}


def said(record: dict[str, Any], **options: Any) -> Answers:
    section = SetSection(path="x", **options)
    content = convert_row(Row(0, "x", 1, record), section, formats_of(section))
    assert isinstance(content, Answers)
    return content


def texts(content: Answers) -> list[Any]:
    return [messages[-1]["content"] for messages in content.answers]


def test_a_preference_with_a_column_called_reference_stays_one() -> None:
    for reference in ("Welcome!", "doi:10.1/x", "", None, 7):
        content = said({**ROW, "reference": reference})
        assert content == said({name: value for name, value in ROW.items() if name != "reference"})
        assert content.judged == "pair" and content.facts == {"margin": (1.5, 1.5)}
    with pytest.raises(RowRefused, match="format: triple"):
        adapt(content, "triple")


def test_a_set_that_names_the_format_has_three_answers() -> None:
    for reference in ("Welcome!", SAID, [SAID]):
        content = said({**ROW, "reference": reference}, format="triple")
        assert texts(content) == ["Welcome!", "Hello!", "Hm."] and content.judged == "ranking"
    made: Any = adapt(content, "triple")
    assert texts(made) == ["Welcome!", "Hello!", "Hm."]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"reference": ""}, "`reference` is empty"),
        ({"reference": " \n"}, "`reference` is empty"),
        ({"reference": []}, "`reference` is an empty list"),
        ({"reference": None}, "`reference` is neither text nor a list of messages"),
        ({"reference": 7}, "`reference` is neither text nor a list of messages"),
        ({"reference": ["a"]}, "`reference`: "),
        ({"reference": [ASKED, SAID]}, "`reference` is a whole conversation"),
        ({"chosen": [ASKED, SAID]}, "`chosen` is a whole conversation"),
        (
            {"rejected": [{"role": "system", "content": "s"}, ASKED, SAID]},
            "`rejected` is a whole conversation",
        ),
    ],
)
def test_rows_that_are_no_triples_are_refused(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowRefused, match=reason):
        said({**ROW, **changes}, format="triple")


def test_a_missing_column_is_named() -> None:
    with pytest.raises(RowRefused, match="the row has no `reference`"):
        said({name: value for name, value in ROW.items() if name != "reference"}, format="triple")
    section = SetSection(path="x", format="triple")
    with pytest.raises(DataError, match="needs the columns `prompt`, `reference`, `chosen`, `rejected`"):
        formats_of(section).check([{"prompt": "p", "chosen": "c", "rejected": "r"}], "x")
