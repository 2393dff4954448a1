"""How the report looks, and the few lines of script that name the values under the pointer.

Light and dark follow the reader's system. Nothing is loaded from anywhere: the page is one file that can be
sent, kept and opened offline. Without script everything but the pointer's readout is there.
"""

STYLE = """
:root { color-scheme: light dark; --ground: #faf9f6; --card: #ffffff; --ink: #211d18; --soft: #6d665c;
  --line: #e4dfd5; --main: #a4561a; --raw: #dcb592; --second: #16727d; --good: #2c7a3f; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ground: #171512; --card: #201d19; --ink: #ece6dc;
  --soft: #a1988a; --line: #383229; --main: #eaa15c; --raw: #75502f; --second: #5fc0cb; --good: #74c687;
  --bad: #f2877f; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; overflow-wrap: anywhere; letter-spacing: -0.01em; }
h2 { font-size: 1.05rem; margin: 2.75rem 0 0.9rem; }
h3 { font-size: 0.85rem; margin: 0 0 0.35rem; color: var(--soft); font-weight: 600; }
.title { display: flex; flex-wrap: wrap; gap: 0.5rem 0.9rem; align-items: center; }
.state { font-size: 0.8rem; font-weight: 600; padding: 0.1rem 0.65rem; border: 1px solid;
  border-radius: 1rem; }
.state.done { color: var(--good); } .state.running, .state.interrupted { color: var(--second); }
.state.failed, .state.died, .state.broken { color: var(--bad); }
.about { color: var(--soft); margin: 0.45rem 0 0; overflow-wrap: anywhere; }
.warning { color: var(--bad); margin: 0.5rem 0 0; font-size: 0.9rem; overflow-wrap: anywhere; }
.tiles { display: grid; gap: 0.75rem; margin-top: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(12rem, 100%), 1fr)); }
.tile, .chart, .sample, .box { background: var(--card);
  border: 1px solid var(--line); border-radius: 0.6rem; }
.tile { padding: 0.7rem 0.95rem 0.8rem; }
.tile span { display: block; color: var(--soft); font-size: 0.82rem; }
.tile b { font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums; white-space: nowrap; }
.tile b small { font-weight: 400; font-size: 0.95rem; color: var(--soft); }
.charts { display: grid; gap: 0.9rem;
  grid-template-columns: repeat(auto-fit, minmax(min(18rem, 100%), 1fr)); }
.charts .chart:first-child { grid-column: 1 / -1; }
.charts .chart:first-child .plot { height: 17rem; }
.chart { margin: 0; padding: 0.85rem 1.1rem 0.9rem; min-width: 0; }
figcaption { display: flex; flex-wrap: wrap; gap: 0.1rem 1rem; align-items: baseline; font-weight: 600;
  font-size: 0.9rem; }
figcaption output { margin-left: auto; font-weight: 400; color: var(--soft); font-size: 0.82rem;
  font-variant-numeric: tabular-nums; }
.legend { display: flex; flex-wrap: wrap; gap: 0 0.9rem; font-weight: 400; font-size: 0.82rem;
  color: var(--soft); }
.legend i { font-style: normal; } .legend i::before { content: ""; display: inline-block; width: 1rem;
  height: 0.19rem; border-radius: 1rem; margin-right: 0.4rem; vertical-align: middle; }
.legend .main::before { background: var(--main); } .legend .raw::before { background: var(--raw); }
.legend .second::before { background: var(--second); }
.plot { position: relative; height: 9.5rem; margin: 0.9rem 0.6rem 1.5rem 2.9rem;
  border-bottom: 1px solid var(--soft); }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; overflow: visible; }
.plot path { fill: none; stroke-width: 2; stroke-linejoin: round; stroke-linecap: round;
  vector-effect: non-scaling-stroke; }
.plot path.grid { stroke: var(--line); stroke-width: 1; }
.plot path.main { stroke: var(--main); } .plot path.second { stroke: var(--second); }
.plot path.raw { stroke: var(--raw); stroke-width: 1.2; } .plot path.dot { stroke-width: 7; }
.plot span { position: absolute; font-size: 0.74rem; line-height: 1; color: var(--soft);
  font-variant-numeric: tabular-nums; white-space: nowrap; }
.plot .y { right: 100%; transform: translate(-0.5rem, -50%); }
.plot .x { top: 100%; transform: translate(-50%, 0.45rem); }
.plot .log { top: 0; right: 0; font-style: italic; }
.plot .lost { top: -0.2rem; transform: translateX(-50%); color: var(--bad); font-size: 1rem;
  font-weight: 700; }
.plot .cursor { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--soft); display: none; }
.none { color: var(--soft); margin: 0.6rem 0 0; }
.sample { padding: 0.9rem 1.1rem 1rem; margin-bottom: 0.9rem; }
.sides { display: grid; gap: 1rem; margin-top: 0.9rem;
  grid-template-columns: repeat(auto-fit, minmax(min(17rem, 100%), 1fr)); }
pre { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 0.82rem/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.sides pre { background: var(--ground); border-left: 3px solid var(--line); border-radius: 0.25rem;
  padding: 0.55rem 0.75rem; }
.sides .before pre { border-color: var(--raw); } .sides .after pre { border-color: var(--main); }
.sides .reference pre { border-color: var(--second); }
.box { overflow-x: auto; padding: 0.35rem 1.1rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
td, th { padding: 0.4rem 0.9rem 0.4rem 0; text-align: left; border-top: 1px solid var(--line);
  vertical-align: top; font-weight: 400; overflow-wrap: anywhere; }
tr:first-child > * { border-top: 0; } thead th { color: var(--soft); font-size: 0.82rem; }
td.number, th.number { text-align: right; padding-right: 0; white-space: nowrap; width: 6rem; }
td.inner { padding-left: 1.4rem; color: var(--soft); } tbody th { white-space: nowrap; color: var(--soft); }
details { background: var(--card);
  border: 1px solid var(--line); border-radius: 0.6rem; margin-bottom: 0.75rem; }
summary { cursor: pointer; padding: 0.65rem 1.1rem; font-weight: 600; }
details > pre, details > .inside { padding: 0.2rem 1.1rem 1rem; }
footer { margin-top: 3rem; color: var(--soft); font-size: 0.82rem; }
@media (max-width: 34rem) { main { padding-top: 1.5rem; } h1 { font-size: 1.35rem; }
  .charts .chart:first-child .plot { height: 12rem; } .tiles { grid-template-columns: 1fr 1fr; }
  tbody th { white-space: normal; } td.number, th.number { width: 4.2rem; } }
@media print { body { background: none; } .chart, .sample, .tile { break-inside: avoid; } }
"""

SCRIPT = """
for (const chart of document.querySelectorAll("figure[data-curves]")) {
  const curves = JSON.parse(chart.dataset.curves), plot = chart.querySelector(".plot");
  const output = chart.querySelector("output"), newest = output.textContent;
  const cursor = plot.appendChild(Object.assign(document.createElement("div"), {className: "cursor"}));
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect(), x = 100 * (event.clientX - box.left) / box.width;
    const nearest = (points) => points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a);
    const under = nearest(curves[0].points);
    const values = curves.map((curve) => [curve.label, nearest(curve.points)]).map(([label, point]) =>
      (curves.length > 1 ? label + " " : "") + (point[2] === null ? "not finite" : +point[2].toPrecision(4)));
    output.textContent = "step " + under[1] + ": " + values.join(", ");
    cursor.style.display = "block";
    cursor.style.left = under[0] + "%";
  });
  plot.addEventListener("pointerleave", () => {
    output.textContent = newest;
    cursor.style.display = "none";
  });
}
"""
