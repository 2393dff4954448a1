"""A result as a table for people."""

from typing import Any

from rich.console import Console
from rich.table import Table

from bench.contest import IMITATION
from bench.runner import BUSY, Result

NONE = "-"
FEW_STEPS = 3
"""A run with fewer timed steps is a thin measurement, and is said to be one."""
COLUMNS = (
    "contestant",
    "tokens/s",
    "spread",
    "x luthier",
    "learned/s",
    "of limit",
    "of machine around",
    "peak GB",
    "first step s",
    "job s",
    "faults/step",
    "loss Δ",
)


def show(result: Result, console: Console | None = None) -> None:
    """Prints the table of one result, what failed, and how it was measured."""
    console = console or Console()
    console.print(render(result))
    for line in footnotes(result):
        console.print(line, highlight=False)


def render(result: Result) -> Table:
    """The table of one result."""
    limit = result["limit"]
    title = f"{result['workload']}: {result['about']} · {result['model']} on {result['machine']['class']}"
    if limit:
        title += f" · limit {limit['tokens_per_second']:,.0f} tokens/s ({limit['dtype']})"
    table = Table(title=title, title_justify="left")
    for name in COLUMNS:
        table.add_column(name, justify="left" if name == "contestant" else "right")
    rates = {row["contestant"]: row["tokens_per_second"] for row in result["summary"]}
    mine = (rates.get("luthier") or {}).get("median")
    drift = result.get("parity", {}).get("first_loss", {})
    for row in result["summary"]:
        table.add_row(*cells(row, mine, drift.get(row["contestant"])))
    return table


def cells(row: dict[str, Any], mine: float | None, drift: float | None) -> list[str]:
    """One contestant's cells."""

    def median(name: str, form: str, scale: float = 1.0) -> str:
        value = row.get(name)
        return format(value["median"] / scale, form) if value else NONE

    rate = row["tokens_per_second"]
    spread = f"{rate['min']:,.0f} to {rate['max']:,.0f}" if rate else NONE
    ratio = f"{mine / rate['median']:.2f}" if rate and mine else NONE
    speed, bound = median("tokens_per_second", ",.1f"), row.get("bound_tokens_per_second")
    if bound and not rate:
        speed, ratio = f"< {bound:.1f}", f"> {mine / bound:.0f}" if mine else NONE
    memory = "gpu_allocated" if row.get("gpu_allocated") else "peak_bytes"
    return [
        row["contestant"] + ("*" if row["notes"] or row["failures"] else ""),
        speed,
        spread,
        ratio,
        median("learned_per_second", ",.1f"),
        median("share_of_limit", ".1%"),
        median("share_around", ".1%"),
        median(memory, ".2f", 1e9),
        median("first_step_seconds", ",.1f"),
        median("job_seconds", ",.0f"),
        median("faults_per_step", ",.0f"),
        f"{drift:.1e}" if drift is not None else NONE,
    ]


def footnotes(result: Result) -> list[str]:
    """What the numbers do not say: notes, failures, how busy the machine was, parity."""
    lines = []
    for row in result["summary"]:
        lines += [
            f"* {row['contestant']}: {text}" for text in (*row["notes"], *dict.fromkeys(row["failures"]))
        ]
    steps: dict[str, int] = {}
    for run in result.get("runs", []):
        if run["status"] == "done" and "steps" in run:
            steps[run["contestant"]] = min(run["steps"], steps.get(run["contestant"], run["steps"]))
    lines += [
        f"{name}: {few} timed steps in a run, which is few" for name, few in steps.items() if few < FEW_STEPS
    ]
    if unprobed := result.get("sweep", {}).get("unprobed"):
        lines.append(
            f"trl-best is the best of {len(result['sweep']['probed'])} rows probed; not probed: {', '.join(unprobed)}"
        )
    peaks = {row["contestant"]: row.get("peak_bytes") for row in result["summary"]}
    if peaks.get("luthier") and peaks.get(IMITATION):
        ratio = peaks["luthier"]["median"] / peaks[IMITATION]["median"]
        lines.append(f"peak memory of luthier is {ratio:.2f} times that of SFT on the same tokens")
    loads = [found["load"] for found in result["gemm"]]
    if loads:
        busy = max(loads[:1])
        lines.append(
            f"load before the first run {busy:.2f}" + (" (others were computing)" if busy > 0.3 else "")
        )
    for row in result["summary"]:
        others = row.get("others_cores")
        if others and others["max"] > BUSY:
            lines.append(
                f"{row['contestant']}: others kept up to {others['max']:.2f} cores busy during a run; "
                "it is disturbed, and its neighbours are to be read with it"
            )
    if (result.get("limit") or {}).get("exceeded"):
        lines.append(
            "a run was faster than the limit, so that is none: the matrix products were measured too low "
            "(others were computing, or the probes were too short)"
        )
    parity = result.get("parity")
    if parity and "losses" in parity:
        worst = max(parity["losses"])
        lines.append(f"parity with the plain model: losses differ by at most {worst:.1e} of their value")
    for name, share in (parity or {}).get("same_answers", {}).items():
        lines.append(f"{name}: {share:.0%} of answers are those of transformers in float32")
    if parity and "gradient" in parity:
        lines.append(
            f"gradient of step 1: least cosine of a tensor {parity['gradient']['least_cosine']:.7f}, "
            f"relative error {parity['gradient']['relative_error']:.1e}"
        )
    return lines
