"""The histogram of lengths, in HTML and as a line."""

import itertools
import re

from hypothesis import given
from hypothesis import strategies as st

from luthier.runs.data_view import Histogram
from luthier.runs.histogram import histogram_html, histogram_line


@st.composite
def histograms(draw: st.DrawFn) -> Histogram:
    edges = sorted(draw(st.sets(st.integers(0, 10_000), min_size=2, max_size=12)))
    counts = draw(st.lists(st.integers(0, 99), min_size=len(edges) - 1, max_size=len(edges) - 1))
    mark = draw(st.integers(0, 12_000))
    return Histogram(edges, counts, draw(st.integers(1, 12_000)), [("<mark>", mark)])


@given(histograms())
def test_every_bar_is_as_high_as_its_count(bins: Histogram) -> None:
    page = histogram_html(bins)
    heights = [float(height) for height in re.findall(r"height:([0-9.]+)%", page)]
    highest = max(bins.counts) or 1
    assert len(heights) == len(bins.counts)
    assert all(abs(h - 100 * n / highest) < 0.1 for h, n in zip(heights, bins.counts, strict=True))
    titles = re.findall(r'title="([0-9,]+) to ([0-9,]+) tokens: ([0-9,]+) rows"', page)
    assert [int(n.replace(",", "")) for _, _, n in titles] == list(bins.counts)
    assert [int(low.replace(",", "")) for low, _, _ in titles] == list(bins.edges[:-1])
    assert page.count('class="over') == sum(low > bins.limit for low in bins.edges[:-1])
    assert all(0 <= float(place) <= 100 for place in re.findall(r"left:([0-9.]+)%", page))
    assert "<mark>" not in page and "&lt;mark&gt;" in page
    assert ("data.max_length" in page) == (bins.limit < bins.edges[-1])


@given(histograms())
def test_the_line_has_a_block_for_each_bin(bins: Histogram) -> None:
    line = histogram_line(bins)
    first, blocks, last = re.fullmatch(r"([0-9,]+) (.*) ([0-9,]+)", line).groups()  # type: ignore[union-attr]
    assert (
        first == f"{bins.edges[0]:,}"
        and last == f"{bins.edges[-1] - 1:,}"
        and len(blocks) == len(bins.counts)
    )
    for block, count in zip(blocks, bins.counts, strict=True):
        assert (block == " ") == (count == 0), "a row is never invisible"
    pairs = sorted(zip(bins.counts, map(ord, blocks), strict=True))
    assert all(a[1] <= b[1] or a[1] == ord(" ") for a, b in itertools.pairwise(pairs))
