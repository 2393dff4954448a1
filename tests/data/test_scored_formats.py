"""Texts with labels and queries with texts: what rows say, what is refused, and which tokens come of them."""

from typing import Any

import numpy as np
import pytest

from encode_samples import speaker
from luthier.config.data_section import SetSection
from luthier.data.content import Labelled, Related
from luthier.data.convert import convert_row, formats_of
from luthier.data.encode import EncodedRow, EncodeOptions, RowEncoder
from luthier.data.encode_scored import JOINED, QUERY, label_names
from luthier.data.sources import Row
from luthier.errors import RowRefused


def said(record: dict[str, Any]) -> Any:
    section = SetSection(path="x")
    return convert_row(Row(0, "x.jsonl", 1, record), section, formats_of(section))


def encoded(content: Any, **options: Any) -> EncodedRow:
    (row,) = RowEncoder(speaker(), None, EncodeOptions(options.pop("max_length", 500), **options)).encode(
        [content]
    )
    if isinstance(row, RowRefused):
        raise row
    return row


@pytest.mark.parametrize(
    ("record", "content"),
    [
        ({"text": "t", "label": " good "}, Labelled("t", "good")),
        ({"text": "t", "label": True}, Labelled("t", 1.0)),
        ({"sentence": "t", "label": 3.5}, Labelled("t", 3.5)),
        ({"anchor": "q", "positive": "a"}, Related("q", ("a",), (1.0,))),
        (
            {"query": "q", "positive": "a", "negative": "b", "negatives": ["c"]},
            Related("q", ("a", "b", "c"), (1.0, 0.0, 0.0)),
        ),
        ({"query": "q", "documents": '["a", "b"]', "labels": "[0, 1]"}, Related("q", ("a", "b"), (0.0, 1.0))),
        ({"query": "q", "document": "a", "label": 0.5}, Related("q", ("a",), (0.5,))),
    ],
)
def test_what_rows_say(record: dict[str, Any], content: Any) -> None:
    assert said(record) == content


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"text": "", "label": 1}, "`text` is empty"),
        ({"text": "t", "label": " "}, "`label` is empty"),
        ({"text": "t", "label": [1]}, "`label` is a list, not a name or a number"),
        ({"text": "t", "label": float("nan")}, "`label` is not a finite number"),
        ({"anchor": " ", "positive": "a"}, "`anchor` holds an empty text"),
        ({"anchor": "q", "positive": "a", "negatives": ["b", 2]}, "`negatives` is a list, not a list of texts"),
        ({"query": "q", "documents": ["a"], "labels": [1, 0]}, "`labels` has 2 values, `documents` has 1 texts"),
        ({"query": "q", "documents": ["a"], "labels": [3]}, "label 1 of `labels` is 3; relevance"),
        ({"anchor": "q", "positive": "a", "label": 0}, "the row has a label beside `positive`"),
        ({"query": "q", "documents": [], "labels": []}, "`documents` is an empty list"),
    ],
)  # fmt: skip
def test_what_is_refused(record: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowRefused) as refused:
        said(record)
    assert reason in str(refused.value)


def test_a_text_has_the_tokens_that_the_tokenizer_gives_it() -> None:
    row = encoded(Labelled("one two", "b"), labels=("a", "b"))
    (segment,) = row.examples[0].segments
    assert segment.ids.tolist() == speaker()("one two")["input_ids"] and not segment.weights.any()
    assert row.examples[0].columns == {"label": 1.0}
    assert encoded(Labelled("one", 2.5)).examples[0].columns == {"label": 2.5}
    with pytest.raises(RowRefused, match="'c', which is none of the classes 'a', 'b'"):
        encoded(Labelled("one", "c"), labels=("a", "b"))


def test_a_text_that_is_too_long() -> None:
    long = Labelled("one two three four five six", 1.0)
    with pytest.raises(RowRefused, match="more than the 3"):
        encoded(long, max_length=3)
    row = encoded(long, max_length=3, overlong="truncate_response")
    assert row.status == "truncated" and len(row.examples[0].segments[0].ids) == 3


def test_a_query_and_its_texts_apart_and_joined() -> None:
    content = Related("red", ("green cat", "blue"), (1.0, 0.25))
    apart = encoded(content).examples[0]
    assert [segment.parent for segment in apart.segments] == [-1, -1, -1]
    assert apart.columns == {"relevance": (QUERY, 1.0, 0.25)}
    joined = encoded(content, joined=True).examples[0]
    assert joined.columns == {"relevance": (1.0, 0.25)}
    root, *leaves = joined.segments
    for leaf, text in zip(leaves, content.texts, strict=True):
        ids = np.concatenate([root.ids, leaf.ids]).tolist()
        assert leaf.parent == 0 and len(leaf.ids)
        assert ids == speaker()(JOINED.format(query="red", document=text))["input_ids"]


def test_the_names_of_classes_are_in_order() -> None:
    labels = [Labelled("t", label) for label in ("10", 2.0, "b", "a", True, "2")]
    assert label_names(labels) == ("1", "2", "10", "a", "b")
