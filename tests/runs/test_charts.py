"""Curves: every point where it belongs, for any values."""

import html
import json
import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.runs.charts import Axis, Curve, chart, smoothed, thinned, tick_label, ticks, value_axis

finite = st.floats(-1e100, 1e100)
curves = st.lists(st.tuples(st.integers(0, 10**9), st.none() | st.floats()), max_size=40).map(
    lambda points: sorted(points, key=lambda point: point[0])
)


def parsed(text: str) -> ElementTree.Element:
    """The figure as XML: also shows that every tag is closed and every attribute quoted."""
    return ElementTree.fromstring(text.replace("&times;", "x"))


@settings(max_examples=200)
@given(st.lists(curves, max_size=3), st.sampled_from([None, True, False]))
def test_any_curve_is_drawn_inside_its_frame(points: list, log: bool | None) -> None:
    figure = parsed(
        chart("A <title>", "loss", [Curve(f"c{i}", p, "main") for i, p in enumerate(points)], log=log)
    )
    for path in figure.iter("path"):
        for number in re.findall(r"-?[\d.]+(?:e[+-]?\d+)?|nan|inf", path.attrib["d"]):
            assert -0.1 <= float(number) <= 1000.1
    for label in figure.iter("span"):
        for place in re.findall(r"(?:top|left):(-?[\d.]+|nan|inf)%", label.attrib.get("style", "")):
            assert -0.1 <= float(place) <= 100.1


@given(st.lists(finite, min_size=1, max_size=20), st.sampled_from([None, True, False]))
def test_axes_hold_all_values_and_ticks_lie_on_them(values: list[float], log: bool | None) -> None:
    values = [0.0 if abs(value) < 1e-100 else value for value in values]
    axis = value_axis(values, log)
    assert axis.low <= min(values) and max(values) <= axis.high and axis.low < axis.high
    found = ticks(axis)
    assert len(found) <= 6 and found == sorted(set(found))
    span = axis.high - axis.low
    assert all(axis.low - 1e-6 * span <= tick <= axis.high + 1e-6 * span for tick in found)


def test_ticks_are_round() -> None:
    assert ticks(Axis(0, 3.1)) == [0, 1, 2, 3]
    assert ticks(Axis(0, 0.31)) == [0, 0.1, 0.2, 0.3]
    assert ticks(Axis(1.2, 1.31)) == [1.2, 1.25, 1.3]
    assert ticks(Axis(0.5, 2000, log=True)) == [1, 10, 100, 1000]
    assert ticks(Axis(1, 240), 6) == [50, 100, 150, 200]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("loss", 0.0, "0"),
        ("loss", 0.05, "0.05"),
        ("lr", 1.5e-4, "1.5e-4"),
        ("tokens_per_second", 1500, "1.5k"),
        ("step", 1500, "1500"),
        ("step", 15000, "15k"),
        ("step", 2_500_000, "2500k"),
        ("loss", 2e6, "2M"),
    ],
)
def test_tick_labels_are_short(name: str, value: float, text: str) -> None:
    assert tick_label(name, value) == text


def test_a_straight_line_stays_straight_when_smoothed() -> None:
    line = [(step, 5.0 - 0.02 * step) for step in range(200)]
    for (step, value), (same, smooth) in zip(line, smoothed(line), strict=True):
        assert step == same and smooth == pytest.approx(value, abs=1e-9)
    assert smoothed(line[:19]) == []


def test_smoothing_takes_noise_away_and_passes_over_gaps() -> None:
    noisy = [(step, 1.0 + (-1) ** step if step % 10 else None) for step in range(400)]
    smooth = [value for _, value in smoothed(noisy)]
    assert len(smooth) == 360
    mean = 8 / 9  # of ten values 0 and 2 in turn, one 2 is missing
    assert all(value is not None and abs(value - mean) < 0.1 for value in smooth[20:-20])


@given(st.integers(1, 5000), st.integers(0, 4999))
def test_thinning_keeps_the_spikes_and_the_gaps(count: int, spike: int) -> None:
    points: list[tuple[int, float | None]] = [(step, math.sin(step / 50)) for step in range(count)]
    points[spike % count] = (spike % count, 99.0)
    if count > 900:
        points[5] = (5, None)
    kept = thinned(points)
    assert len(kept) <= 1250 and kept == sorted(kept, key=lambda point: point[0])
    assert set(kept) <= set(points)
    assert (spike % count, 99.0) in kept or spike % count == 5
    assert count <= 900 or (5, None) in kept


def test_gaps_crosses_and_dots() -> None:
    points = [(1, 1.0), (2, 2.0), (3, math.nan), (4, None), (5, 1.5), (6, math.inf), (7, 1.0), (8, 1.2)]
    text = chart("Loss", "loss", [Curve("training", points, "main")])
    assert "Not finite at step 3, 4, 6." in text
    assert text.count('class="lost"') == 3
    figure = parsed(text)
    drawn = [path.attrib for path in figure.iter("path") if path.attrib["class"] != "grid"]
    assert [path["class"] for path in drawn] == ["main", "dot main"]
    assert drawn[0]["d"].count("M") == 2 and drawn[1]["d"].count("h0") == 1


def test_nothing_yet_and_nothing_finite() -> None:
    assert "nothing yet" in chart("Loss", "loss", [Curve("training", [], "main")])
    text = chart("Loss", "loss", [Curve("training", [(1, None)], "main")])
    assert "Loss: no finite value" in text and "Not finite at step 1." in text


def test_wide_ranges_are_logarithmic_unless_told() -> None:
    points = [(1, 0.5), (2, 900.0), (3, 0.6)]
    assert 'class="log"' in chart("Gradient norm", "grad_norm", [Curve("g", points, "main")])
    assert 'class="log"' not in chart("Gradient norm", "grad_norm", [Curve("g", points, "main")], log=False)


def test_the_pointer_reads_the_same_values() -> None:
    points = [(1, 3.0), (2, None), (3, 1.0)]
    figure = parsed(chart("Loss", "loss", [Curve("training", points, "main")]))
    (curve,) = json.loads(html.unescape(figure.attrib["data-curves"]))
    assert curve == {"label": "training", "points": [[0, 1, 3.0], [50, 2, None], [100, 3, 1.0]]}
