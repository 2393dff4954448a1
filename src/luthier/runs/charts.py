"""Curves over the steps as inline SVG with HTML labels: sharp at any width, no script needed to read them.

The drawing area is 1000 x 1000 units, stretched to whatever room there is, with lines that keep their width;
labels are HTML, placed in per cent, so that they keep their size on a narrow screen.
"""

import html
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from luthier.runs.figures import exponent, show

Point = tuple[int, float | None]

_SIDE = 1000.0
_MOST_POINTS = 800
_SMOOTH_FROM = 20


@dataclass(frozen=True)
class Curve:
    """One line of a chart: its values over the steps (None where a value was not finite) and its look."""

    label: str
    points: Sequence[Point]
    style: str
    """`main`, `raw` (faint, behind its smoothed line) or `second`."""


@dataclass(frozen=True)
class Axis:
    """How values become places between 0 (low) and 1 (high)."""

    low: float
    high: float
    log: bool = False

    def place(self, value: float) -> float:
        """Where a value lies."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log10(low), math.log10(high), math.log10(value)
        return (value - low) / (high - low)


def chart(title: str, name: str, curves: Sequence[Curve], *, log: bool | None = None) -> str:
    """One chart as an HTML `<figure>`; a note in its place while there is nothing to draw.

    Args:
        title: what is drawn.
        name: the metric, which decides how its values are written.
        curves: lines, the hindmost first.
        log: logarithmic axis; absent: where all values are positive and span over two decades.
    """
    curves = [
        replace(curve, points=[(step, _drawable(value)) for step, value in curve.points]) for curve in curves
    ]
    values = [value for curve in curves for _, value in curve.points if value is not None]
    steps = [step for curve in curves for step, _ in curve.points]
    if not steps:
        caption = f"<figcaption>{html.escape(title)}</figcaption>"
        return f'<figure class="chart">{caption}<p class="none">nothing yet</p></figure>'
    across = _step_axis(steps)
    up = value_axis(values, log)
    lines = "".join(_line(curve, across, up) for curve in curves)
    up_ticks, across_ticks = ticks(up), [tick for tick in ticks(across, 6) if tick == round(tick)]
    grid = "".join(f'<path class="grid" d="M0 {_flip(up.place(tick))}H{_SIDE:g}"/>' for tick in up_ticks)
    return (
        f'<figure class="chart" data-curves="{_hover_data(curves, across)}"><figcaption>{html.escape(title)}'
        f"{_legend(curves)}<output>{_newest(name, curves)}</output></figcaption>"
        f'<div class="plot" role="img" aria-label="{html.escape(_spoken(title, name, curves))}">'
        f'<svg viewBox="0 0 {_SIDE:g} {_SIDE:g}" preserveAspectRatio="none" aria-hidden="true">'
        f"{grid}{lines}</svg>"
        f"{_labels(name, up, up_ticks, across, across_ticks)}{_crosses(curves, across)}</div>"
        f"{_lost(curves)}</figure>"
    )


def smoothed(points: Sequence[Point]) -> list[Point]:
    """The course of a noisy curve: a centred mean with triangular weights over about an eighth of it.

    Centred, because a running mean lags behind a falling loss and makes it look worse than it is; the window
    shrinks towards the ends. Values that are not finite are passed over. Short curves come back empty: they
    are clear as they are.
    """
    finite = [(step, value) for step, value in points if value is not None]
    if len(finite) < _SMOOTH_FROM:
        return []
    reach = max(2, len(finite) // 32)
    # A mean of means over windows of one width is a mean with triangular weights.
    values = _window_means(_window_means([value for _, value in finite], reach), reach)
    return [(step, value) for (step, _), value in zip(finite, values, strict=True)]


def _window_means(values: Sequence[float], reach: int) -> list[float]:
    """The mean of each value and its neighbours, up to `reach` of them and as many on either side."""
    sums = list(accumulate(values, initial=0.0))
    means: list[float] = []
    for index in range(len(values)):
        near = min(reach, index, len(values) - 1 - index)
        means.append((sums[index + near + 1] - sums[index - near]) / (2 * near + 1))
    return means


def thinned(points: Sequence[Point], most: int = _MOST_POINTS) -> list[Point]:
    """About `most` points at most with the same look: of every bucket its lowest, its highest and its gap."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(2 * len(points) / most)
    kept: list[Point] = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        finite = [point for point in bucket if point[1] is not None]
        extremes = {min(finite, key=_value), max(finite, key=_value)} if finite else set()
        kept.extend(
            sorted({*extremes, *[point for point in bucket if point[1] is None][:1]}, key=lambda p: p[0])
        )
    return kept


def value_axis(values: Sequence[float], log: bool | None = None) -> Axis:
    """An axis that holds all values with a little room; never of length zero."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    if log is None:
        log = low > 0 and high / low > 100
    if log and low > 0:
        return Axis(low / 1.15, high * 1.15, log=True)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    # Down to zero, where zero is near anyway: the eye takes the ground for zero.
    bottom = 0.0 if 0 <= low <= 0.35 * high else low - room
    return Axis(bottom, high + room)


def ticks(axis: Axis, most: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten) that lie on the axis, `most` at most."""
    if axis.log:
        decades = range(math.ceil(math.log10(axis.low)), math.floor(math.log10(axis.high)) + 1)
        every = max(1, math.ceil(len(decades) / most))
        return [10.0**power for power in decades][::every]
    span = axis.high - axis.low
    power = 10.0 ** math.floor(math.log10(span / most))
    size = next(factor * power for factor in (1, 2, 5, 10) if span / (factor * power) <= most)
    first = math.ceil(axis.low / size - 1e-9)
    last = math.floor(axis.high / size + 1e-9)
    # Rounded, because 3 * 0.1 is not 0.3 and would be written with seventeen digits.
    return [round(index * size, 12 - math.floor(math.log10(size))) for index in range(first, last + 1)][
        : most + 1
    ]


def tick_label(name: str, value: float) -> str:
    """A tick's value in as few characters as it takes."""
    if value == 0:
        return "0"
    if abs(value) < 1e-2:
        return exponent(value)
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * size or (abs(value) >= size and name != "step"):
            return f"{value / size:g}{unit}"
    return f"{value:g}"


def _step_axis(steps: Sequence[int]) -> Axis:
    low, high = min(steps), max(steps)
    return Axis(low, high) if high > low else Axis(low - 1, high + 1)


def _drawable(value: float | None) -> float | None:
    """A value within what an axis can be computed for: beyond that floats overflow or vanish."""
    if value is None or not abs(value) < 1e100:
        return None
    return value if abs(value) > 1e-100 else 0.0


def _value(point: Point) -> float:
    return math.inf if point[1] is None else point[1]


def _flip(place: float) -> str:
    """A place as a coordinate: SVG counts from the top."""
    return f"{_SIDE * (1 - place):.1f}"


def _line(curve: Curve, across: Axis, up: Axis) -> str:
    parts: list[list[str]] = [[]]
    for step, value in thinned(curve.points):
        if value is None:
            parts.append([])
        else:
            parts[-1].append(f"{_SIDE * across.place(step):.1f} {_flip(up.place(value))}")
    lines = "".join(f"M{'L'.join(part)}" for part in parts if len(part) > 1)
    # A point on its own is a line of no length with round ends. Few points of a second curve are all marked.
    few = curve.style == "second" and len(curve.points) <= 40
    dots = "".join(f"M{place}h0" for part in parts for place in part if len(part) == 1 or few)
    style = html.escape(curve.style)
    line = f'<path class="{style}" d="{lines}"/>' if lines else ""
    return line + (f'<path class="dot {style}" d="{dots}"/>' if dots else "")


def _labels(
    name: str, up: Axis, up_ticks: Sequence[float], across: Axis, across_ticks: Sequence[float]
) -> str:
    left = "".join(
        f'<span class="y" style="top:{100 * (1 - up.place(tick)):.2f}%">{tick_label(name, tick)}</span>'
        for tick in up_ticks
    )
    below = "".join(
        f'<span class="x" style="left:{100 * across.place(tick):.2f}%">{tick_label("step", tick)}</span>'
        for tick in across_ticks
    )
    return left + below + ('<span class="log">log</span>' if up.log else "")


def _crosses(curves: Sequence[Curve], across: Axis) -> str:
    lost = sorted({step for curve in curves for step, value in curve.points if value is None})
    return "".join(
        f'<span class="lost" style="left:{100 * across.place(step):.2f}%" '
        f'title="step {step}: not finite">&times;</span>'
        for step in lost[:50]
    )


def _lost(curves: Sequence[Curve]) -> str:
    lost = sorted({step for curve in curves for step, value in curve.points if value is None})
    if not lost:
        return ""
    steps = ", ".join(str(step) for step in lost[:10]) + (
        f" and {len(lost) - 10} more" if len(lost) > 10 else ""
    )
    return f'<p class="warning">Not finite at step {steps}.</p>'


def _legend(curves: Sequence[Curve]) -> str:
    shown = [curve for curve in curves if curve.points]
    if len(shown) < 2:
        return ""
    items = "".join(
        f'<i class="{html.escape(curve.style)}">{html.escape(curve.label)}</i>' for curve in shown
    )
    return f'<span class="legend">{items}</span>'


def _newest(name: str, curves: Sequence[Curve]) -> str:
    """The last value of the hindmost curve, which is the one that was measured."""
    for curve in curves[:1]:
        for step, value in reversed(curve.points):
            if value is not None:
                return f"{show(name, value)} at step {step:,}"
    return ""


def _spoken(title: str, name: str, curves: Sequence[Curve]) -> str:
    """The chart in words, for those who cannot see it."""
    parts: list[str] = []
    for curve in curves:
        finite = [(step, value) for step, value in curve.points if value is not None]
        if finite and curve.style != "raw":
            (first, start), (last, end) = finite[0], finite[-1]
            way = f"from {show(name, start)} at step {first} to {show(name, end)} at step {last}"
            parts.append(f"{curve.label} {way}")
    return f"{title}: {'; '.join(parts) or 'no finite value'}"


def _hover_data(curves: Sequence[Curve], across: Axis) -> str:
    """What the optional script needs to name the values under the pointer."""
    data = [
        {
            "label": curve.label,
            "points": [
                [round(100 * across.place(step), 2), step, None if value is None else float(f"{value:.5g}")]
                for step, value in thinned(curve.points)
            ],
        }
        for curve in curves
        if curve.points
    ]
    return html.escape(json.dumps(data, separators=(",", ":")))
