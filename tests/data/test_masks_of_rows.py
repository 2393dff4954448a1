"""What rows say in numbers about what is learned: masks of tokens, positions, labels of steps."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.config.data_section import SetSection
from luthier.data.adapt import adapt
from luthier.data.content import Steps
from luthier.data.convert import convert_row, formats_of
from luthier.data.sources import Row
from luthier.errors import RowRefused, SetAside

BITS = st.lists(st.sampled_from([0, 1]), min_size=2, max_size=12).filter(any)


def said(record: dict[str, Any]) -> Any:
    section = SetSection(path="x")
    return convert_row(Row(0, "x", 1, record), section, formats_of(section))


@pytest.mark.parametrize("name", ["loss_mask", "completion_mask", "assistant_masks"])
@given(bits=BITS, as_truth=st.booleans())
def test_a_mask_learns_what_its_labels_would(name: str, bits: list[int], as_truth: bool) -> None:
    ids = list(range(5, 5 + len(bits)))
    labels = [i if bit else -100 for i, bit in zip(ids, bits, strict=True)]
    read = said({"input_ids": ids, name: [bool(bit) for bit in bits] if as_truth else bits})
    expected = said({"input_ids": ids, "labels": labels, name: bits})
    assert read.weights.tolist() == expected.weights.tolist() == bits
    with pytest.raises(RowRefused, match=f"`{name}` and `labels` say different things"):
        said({"input_ids": ids, "labels": labels, name: [1 - bits[0], *bits[1:]]})


def test_packed_rows_are_refused_by_their_positions() -> None:
    row = {"input_ids": [5, 6, 7, 8]}
    plain = said(row)
    assert said({**row, "position_ids": [0, 1, 2, 3]}).ids.tolist() == plain.ids.tolist()
    padded = said({**row, "position_ids": [0, 1, 0, 0], "attention_mask": [1, 1, 0, 0]})
    assert padded.ids.tolist() == [5, 6]
    with pytest.raises(RowRefused, match=r"`position_ids` begins again at 0 \(id 3\)"):
        said({**row, "position_ids": [0, 1, 0, 1]})


@pytest.mark.parametrize(("label", "right"), [(1, True), (0.5, True), (0.4, False), (0, False), (-1, False)])
def test_a_step_is_right_from_one_half_on(label: float, right: bool) -> None:
    steps = Steps(({"role": "user", "content": "q"},), ("a", "b"), (1.0, label))
    if right:
        assert adapt(steps, "conversation").messages[-1]["content"] == "a\nb"  # pyright: ignore[reportAttributeAccessIssue]
    else:
        with pytest.raises(SetAside):
            adapt(steps, "conversation")


def test_a_prompt_keeps_the_label_its_reward_needs() -> None:
    assert said({"prompt": "2+2?", "label": "4", "chosen": "x"}).columns == {"label": "4", "chosen": "x"}
    with pytest.raises(RowRefused, match="`images`"):
        said({"prompt": "2+2?", "images": ["x"]})
