"""The figures of docs/performance.md are those of the result files that it names."""

import re
from typing import Any

import pytest
from bench.watch import ROOT

from bench import results

PAGE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
NAMED = [
    path
    for path in map(results.FOLDER.joinpath, re.findall(r"`([\w-]+-c[pu]+\.json)`", PAGE))
    if path.exists()
]


def cells(row: dict[str, Any]) -> str:
    """A contestant's part of a line of the table."""
    rate, memory, faults = (row[name] for name in ("tokens_per_second", "peak_bytes", "faults_per_step"))
    digits = 1 if rate["median"] < 75 else 0
    spread = " to ".join(f"{rate[end]:.{digits}f}" for end in ("min", "max"))
    told = f"{rate['median']:.{digits}f} ({spread})"
    return f"| {told} | {memory['median'] / 1e9:.2f} GB | {faults['median']:,.0f} |"


def test_the_page_names_results_that_are_kept() -> None:
    assert len(NAMED) >= 2


@pytest.mark.parametrize("path", NAMED, ids=lambda path: path.stem)
def test_the_page_shows_what_was_measured(path: Any) -> None:
    result = results.read(path)
    for row in result["summary"]:
        assert any(
            line.startswith(f"| **{result['workload']}**") and line.endswith(cells(row))
            for line in PAGE.splitlines()
        ), f"{row['contestant']}: {cells(row)}"
