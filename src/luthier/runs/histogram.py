"""A histogram of lengths: as HTML bars that need no script, and as one line of blocks for the terminal."""

import html
from bisect import bisect_right

from luthier.runs.charts import tick_label
from luthier.runs.data_view import Histogram

_BLOCKS = " ▁▂▃▄▅▆▇█"
_LABELS = 6

HISTOGRAM_STYLE = """
.bars { display: flex; align-items: flex-end; gap: 1px; position: absolute; inset: 0; }
.bars b { flex: 1; background: var(--main); border-radius: 2px 2px 0 0; min-height: 0; }
.bars b.some { min-height: 2px; } .bars b.over { background: var(--raw); } .bars b:hover { opacity: 0.7; }
.plot .mark { top: 0; bottom: 0; width: 0; border-left: 1px dashed var(--second); }
.plot .mark i { position: absolute; left: 0.3rem; top: 0; font-style: normal; background: var(--card);
  padding: 0 0.2rem; border-radius: 0.2rem; line-height: 1.3; color: var(--second); }
.plot .mark.limit { border-left: 1px solid var(--bad); } .plot .mark.limit i { color: var(--bad); }
.plot .mark.left i { left: auto; right: 0.3rem; }
"""


def histogram_html(bins: Histogram) -> str:
    """The histogram as a `<figure>` with its labels; bars of rows that are too long are fainter."""
    highest = max(bins.counts, default=0) or 1
    bars = "".join(
        f'<b class="{"over" if low > bins.limit else "fits"}{" some" if count else ""}" '
        f'style="height:{100 * count / highest:.1f}%" '
        f'title="{low:,} to {high - 1:,} tokens: {count:,} rows"></b>'
        for low, high, count in zip(bins.edges, bins.edges[1:], bins.counts, strict=False)
    )
    marks = [(name, value, "mark") for name, value in bins.marks]
    if bins.limit < bins.edges[-1]:
        marks.append(("data.max_length", bins.limit, "mark limit"))
    places = sorted((_place(bins, value), name, value, kind) for name, value, kind in marks)
    lines = "".join(
        f'<span class="{kind}{" left" if place > 70 else ""}" style="left:{place:.1f}%">'
        f'<i style="top:{1.25 * number:.2f}rem">{html.escape(name)} {value:,}</i></span>'
        for number, (place, name, value, kind) in enumerate(places)
    )
    spoken = ", ".join(f"{name} {value:,}" for _, name, value, _ in places)
    return (
        '<figure class="chart"><figcaption>Tokens of the rows</figcaption>'
        f'<div class="plot" role="img" aria-label="Histogram of lengths: {html.escape(spoken)}">'
        f'<div class="bars">{bars}</div>{lines}{_axis(bins)}'
        f'<span class="y" style="top:0%">{tick_label("rows", highest)}</span></div></figure>'
    )


def histogram_line(bins: Histogram) -> str:
    """The histogram as a line of blocks between its shortest and its longest row."""
    highest = max(bins.counts, default=0) or 1
    blocks = "".join(_BLOCKS[-(-count * (len(_BLOCKS) - 1) // highest)] for count in bins.counts)
    return f"{bins.edges[0]:,} {blocks} {bins.edges[-1] - 1:,}"


def _place(bins: Histogram, value: int) -> float:
    """Where a length lies, in per cent of the width: the bins are drawn equally wide, whatever they hold."""
    edges = bins.edges
    index = min(max(bisect_right(edges, value) - 1, 0), len(edges) - 2)
    within = (value - edges[index]) / (edges[index + 1] - edges[index])
    return 100 * (index + min(max(within, 0.0), 1.0)) / (len(edges) - 1)


def _axis(bins: Histogram) -> str:
    last = len(bins.edges) - 1
    indices = sorted({round(number * last / (_LABELS - 1)) for number in range(_LABELS)})
    return "".join(
        f'<span class="x" style="left:{100 * index / last:.1f}%">{tick_label("step", bins.edges[index])}</span>'
        for index in indices
    )
