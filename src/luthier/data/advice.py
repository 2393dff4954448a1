"""What to change, in the light of a data set's figures: each a sentence with the key and its value."""

import math

from luthier.data.summary import Summary

_KEEP = 99
_LITTLE_LEARNED = 0.05
_POOR_FILL = 0.85
_FEW_PACKS = 20  # of so few the last one, which is never full, decides the mean


def advice(
    summary: Summary,
    *,
    max_length: int,
    capacity: int,
    max_drop_fraction: float,
    overlong: str | None,
    cleans_duplicates: bool,
) -> list[str]:
    """Sentences that say what could be better, the gravest first; none if all is well.

    Args:
        summary: the rows.
        max_length: the longest row that is used, in tokens.
        capacity: tokens of a micro-batch.
        max_drop_fraction: share of the rows that may be unusable.
        overlong: what is done with longer rows.
        cleans_duplicates: whether duplicates are left out.
    """
    ledger = summary.ledger
    said: list[str] = []
    if ledger.read and ledger.faults > max_drop_fraction * ledger.read:
        said.append(
            f"training would stop: {ledger.faults / ledger.read:.1%} of the rows cannot be used, and "
            f"data.max_drop_fraction allows {max_drop_fraction:.1%}. Correct them, or raise it"
        )
    said += _about_lengths(summary, max_length, capacity, overlong)
    if summary.num_tokens and summary.learned_share < _LITTLE_LEARNED:
        said.append(
            f"only {summary.learned_share:.1%} of the tokens are learned; the rest is read each time. Shorter "
            "prompts, or data.learn=all, make more of the time"
        )
    packed = summary.packed(capacity)
    if packed is not None and packed.micro_batches > _FEW_PACKS and packed.fill < _POOR_FILL:
        said.append(
            f"micro-batches of {capacity:,} tokens are only {packed.fill:.0%} full: long rows leave gaps that no "
            f"short one fills. train.tokens_per_micro_batch={2 * capacity} packs better, if memory allows"
        )
    if summary.num_duplicates and not cleans_duplicates:
        rows = "row says" if summary.num_duplicates == 1 else "rows say"
        said.append(
            f"{summary.num_duplicates:,} {rows} the same as an earlier one; data.clean.exact_duplicates=true leaves "
            "them out"
        )
    return said


def _about_lengths(summary: Summary, max_length: int, capacity: int, overlong: str | None) -> list[str]:
    lengths = summary.lengths
    if lengths is None or (lengths.longest <= max_length and not summary.num_unmeasured):
        return []
    measured, unmeasured = len(lengths.tokens), summary.num_unmeasured
    fitting = lengths.fitting(max_length) * measured / (measured + unmeasured)
    wanted = lengths.percentile(_KEEP)
    what = {
        None: "dropped (plain text is split)",
        "drop": "dropped",
        "truncate_oldest_turns": "shortened by their oldest turns",
        "truncate_response": "shortened at the end of their last answer",
        "split": "split",
        "error": "an error",
    }[overlong]
    text = f"{1 - fitting:.1%} of the rows are longer than data.max_length ({max_length:,}) and are {what}"
    if unmeasured:
        text += f", where that is possible ({unmeasured:,} rows cannot be shortened so)"
    elif wanted > max_length:
        rounded = 64 * math.ceil(wanted / 64)
        more = f" with train.tokens_per_micro_batch={rounded}" if rounded > capacity else ""
        text += f"; data.max_length={rounded}{more} keeps {_KEEP} % of them whole"
    elif overlong in (None, "drop"):
        text += f"; the longest has {lengths.longest:,} tokens. data.overlong says what else can be done"
    return [text]
