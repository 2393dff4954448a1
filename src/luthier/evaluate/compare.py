"""Several models side by side on the same rows: each one's numbers, and how much they differ from the first one's."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from luthier.evaluate.intervals import Interval, difference
from luthier.evaluate.task import Evaluation
from luthier.evaluate.variants import DECODED, LLAMA_CPP


@dataclass(frozen=True)
class Measured:
    """One model's results with what it takes."""

    label: str
    engine: str
    size: int
    """Bytes of its files."""
    found: Evaluation


@dataclass(frozen=True)
class Difference:
    """How much a number differs from that of the first model, on the rows that both have."""

    value: float
    interval: Interval | None
    """None: too few rows, or no interval can be told."""
    num_rows: int

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.interval is not None and not self.interval.low <= 0 <= self.interval.high


def differences(first: Evaluation, other: Evaluation) -> dict[str, Difference]:
    """`other - first` by name, row against row: rows that only one of them could read are left out."""
    found: dict[str, Difference] = {}
    for name in (name for name in other.sums if name in first.sums):
        ours = {key: place for place, key in enumerate(other.keys[name])}
        pairs = [(place, ours[key]) for place, key in enumerate(first.keys[name]) if key in ours]
        if not pairs:
            continue
        theirs = first.sums[name].of([one for one, _ in pairs])
        mine = other.sums[name].of([one for _, one in pairs])
        found[name] = Difference(mine.estimate - theirs.estimate, difference(mine, theirs), len(pairs))
    return found


def same_tokens(measured: Sequence[Measured]) -> bool:
    """Whether all of them cut the rows into as many tokens, so that a loss per token can be compared."""
    counts = {float(one.found.sums["loss"].parts_RK[:, 1].sum()) for one in measured}
    return len(counts) == 1


def table(measured: Sequence[Measured]) -> list[list[str]]:
    """The numbers of all, for people: a head and one line for each model."""
    names = list(dict.fromkeys(name for one in measured for name in (*one.found.sums, *one.found.values)))
    names = [name for name in names if "/" not in name or any(name in one.found.sums for one in measured)]
    rows = [["", "size", "tokens/s", "perplexity", *(name.replace("_", " ") for name in names)]]
    for one in measured:
        speed = one.found.tokens_per_second
        shown = [one.label, human_size(one.size), "-" if speed is None else f"{speed:,.0f}"]
        shown.append(f"{one.found.perplexity:.3f}")
        rows.append(shown + [_number(one.found, name) for name in names])
    return rows


def difference_table(measured: Sequence[Measured]) -> list[list[str]]:
    """What each differs by from the first, for people; `*` where zero lies outside of the interval."""
    found = {one.label: differences(measured[0].found, one.found) for one in measured[1:]}
    names = list(dict.fromkeys(name for one in found.values() for name in one))
    rows = [[f"minus {measured[0].label}", *(name.replace("_", " ") for name in names)]]
    for label, by_name in found.items():
        rows.append([label, *(_difference(by_name.get(name)) for name in names)])
    return rows


def notes(measured: Sequence[Measured]) -> list[str]:
    """What a person must know to read the tables."""
    told = [
        "In brackets 95 % intervals: Wilson's for shares of rows, else the bootstrap over rows; differences are "
        "drawn row by row, * where zero lies outside. Tokens a second: answers, many at once, with what else ran here."
    ]
    told += engine_notes(measured)
    if not same_tokens(measured):
        told.append("The models cut the rows into other tokens, so loss and perplexity cannot be compared.")
    return told


def engine_notes(measured: Sequence[Measured]) -> list[str]:
    """Which GGUF files were computed by what."""
    told: list[str] = []
    if decoded := _labels(measured, DECODED):
        told.append(
            f"{decoded}: decoded and computed by transformers. llama.cpp computes the same file with another speed "
            "and in fewer bits; with pip install 'luthier[llama]' it is measured there."
        )
    if in_llama_cpp := _labels(measured, LLAMA_CPP):
        told.append(f"{in_llama_cpp}: computed by llama.cpp itself, one answer after another.")
    return told


def _labels(measured: Sequence[Measured], engine: str) -> str:
    return ", ".join(one.label for one in measured if one.engine == engine)


def as_json(measured: Sequence[Measured]) -> list[dict[str, object]]:
    """The same numbers, one object for each model."""
    found: list[dict[str, object]] = []
    for one in measured:
        numbers = numbers_of(one.found)
        more = differences(measured[0].found, one.found) if one is not measured[0] else {}
        minus = {
            name: {"value": by.value, "rows": by.num_rows, **_range(by.interval)} for name, by in more.items()
        }
        found.append(
            {
                "variant": one.label,
                "engine": one.engine,
                "bytes": one.size,
                "tokens_per_second": one.found.tokens_per_second,
                **numbers,
                **({"minus_first": minus} if minus else {}),
            }
        )
    return found


def numbers_of(found: Evaluation) -> dict[str, object]:
    """All numbers of an evaluation by name, with `intervals` beside them."""
    predicted: dict[str, object] = {"loss": found.loss, "perplexity": found.perplexity}
    if found.bits_per_byte is not None:
        predicted["bits_per_byte"] = found.bits_per_byte
    ranges: Mapping[str, Interval] = found.intervals
    return {
        "rows": found.num_rows,
        **predicted,
        **found.values,
        "intervals": {name: [one.low, one.high] for name, one in ranges.items()},
    }


def laid_out(rows: Sequence[Sequence[str]]) -> str:
    """A table as text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    return "\n".join(lines)


def human_size(size: int) -> str:
    """Bytes in the unit that suits them, powers of ten."""
    power = min(4, int(math.log10(size) // 3)) if size >= 1000 else 0
    return f"{size / 1000**power:.{1 if power else 0}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _number(found: Evaluation, name: str) -> str:
    values = {"loss": found.loss, "bits_per_byte": found.bits_per_byte, **found.values}
    value, range_ = values.get(name), found.intervals.get(name)
    return "-" if value is None else f"{value:.3f}{f' {range_}' if range_ else ''}"


def _difference(found: Difference | None) -> str:
    if found is None:
        return "-"
    return f"{found.value:+.3f}{f' {found.interval}' if found.interval else ''}{'*' if found.clear else ' '}"


def _range(found: Interval | None) -> dict[str, float]:
    return {} if found is None else {"low": found.low, "high": found.high}
