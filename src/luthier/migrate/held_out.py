"""How many rows are held out: a share of them or a number, under each tool's own name."""

from luthier.migrate.draft import Draft
from luthier.migrate.readers import number, whole


def put_held_out_size(draft: Draft, key: str, sets: str, *, has_sets: bool) -> None:
    """Sets how many rows are held out. Below 1 the value is a share of all rows, from 1 on a number of them.

    Args:
        draft: what is written.
        key: the tool's key for the size.
        sets: the tool's key that names held-out sets, beside which the size does nothing.
        has_sets: whether that key names any.
    """
    size = draft.get(key, number, 0)
    if key not in draft.given:
        return
    if has_sets or size == 0:
        draft.needless(key, f"has no effect beside {sets}" if has_sets else "is off")
    elif size >= 1:
        draft.map(key, "data.eval_rows", draft.get(key, whole, 0))
    else:
        draft.map(key, "data.eval_fraction", float(size))
