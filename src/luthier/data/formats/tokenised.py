"""Rows that were tokenised elsewhere: `{"input_ids": […], "labels": […], "attention_mask": […]}`.

`labels` repeats the ids, with -100 where a token is not learned; it is not shifted. Tokens whose
`attention_mask` is 0 are padding and are left out. Without `labels`, masks (`loss_mask`, `completion_mask`,
`assistant_masks`) say with 1 which tokens are learned.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.content import TokenIds
from luthier.data.turns import Tags
from luthier.data.values import in_words, unpacked
from luthier.errors import RowRefused

IGNORED = -100
SHAPES = (("input_ids",),)
_MASKS = ("loss_mask", "completion_mask", "assistant_masks")
OPTIONAL = ("labels", *_MASKS, "attention_mask", "token_type_ids", "position_ids", "length")
YIELDS = ()


def convert(record: dict[str, Any], tags: Tags) -> TokenIds:
    """The ids and the weight of each one. Raises RowRefused."""
    ids = _whole_numbers(record["input_ids"], "input_ids")
    if len(ids) and ids.min() < 0:
        at = int(np.argmax(ids < 0))
        raise RowRefused(f"`input_ids` holds {ids[at]} at position {at + 1}; ids are 0 or more")
    shown = _same_length(record, "attention_mask", ids)
    labels = _same_length(record, "labels", ids)
    weights = np.ones(len(ids), np.float32) if labels is None else (labels != IGNORED).astype(np.float32)
    if labels is not None and (other := (labels != IGNORED) & (labels != ids)).any():
        at = int(np.argmax(other))
        raise RowRefused(
            f"`labels` has {labels[at]} where `input_ids` has {ids[at]} (position {at + 1}); it must have the same "
            "ids, not shifted, or -100"
        )
    keep = np.ones(len(ids), bool) if shown is None else shown != 0
    weights = _masked(record, ids, weights, keep, has_labels=labels is not None)
    _refuse_packed(_same_length(record, "position_ids", ids), keep)
    if not weights[keep].any():
        raise RowRefused("all targets masked: no id of `input_ids` is to be learned")
    return TokenIds(ids[keep].astype(np.int32), weights[keep])


def _masked(
    record: dict[str, Any],
    ids: NDArray[np.int64],
    weights: NDArray[np.float32],
    keep: NDArray[np.bool_],
    has_labels: bool,
) -> NDArray[np.float32]:
    """The weights with those tokens left out that a mask leaves out."""
    for column in _MASKS:
        mask = _same_length(record, column, ids)
        if mask is None:
            continue
        if not np.isin(mask, (0, 1)).all():
            raise RowRefused(
                f"`{column}` holds more than 0 and 1, so it is not known which tokens are learned"
            )
        if has_labels and (other := (mask != weights) & keep).any():
            at = int(np.argmax(other)) + 1
            raise RowRefused(
                f"`{column}` and `labels` say different things of position {at}; keep one of them"
            )
        weights = weights * mask.astype(np.float32)
    return weights


def _refuse_packed(positions: NDArray[np.int64] | None, keep: NDArray[np.bool_]) -> None:
    """Raises RowRefused if positions begin anew: the row then is several that must not see each other."""
    if positions is not None and (again := positions[keep][1:] == 0).any():
        raise RowRefused(
            f"`position_ids` begins again at 0 (id {int(np.argmax(again)) + 2}), so the row is several packed "
            "together; give each as a row of its own"
        )


def _same_length(record: dict[str, Any], column: str, ids: NDArray[np.int64]) -> NDArray[np.int64] | None:
    if record.get(column) is None:
        return None
    values = _whole_numbers(record[column], column)
    if len(values) != len(ids):
        raise RowRefused(f"`{column}` has {len(values)} values, `input_ids` has {len(ids)}")
    return values


def _whole_numbers(values: Any, column: str) -> NDArray[np.int64]:
    values = unpacked(values, f"`{column}`")
    if not isinstance(values, list):
        raise RowRefused(f"`{column}` is {in_words(values)}, not a list of whole numbers")
    for number, value in enumerate(values, start=1):
        if not isinstance(value, int) or (isinstance(value, bool) and column not in _MASKS):
            raise RowRefused(f"`{column}` holds {in_words(value)} at position {number}, not a whole number")
        if abs(value) >= 2**31:
            raise RowRefused(f"`{column}` holds a number that is too large at position {number}")
    return np.array(values, dtype=np.int64)
