"""The report: one file, whole for any run, with nothing in it that data could make run."""

import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from luthier import runs
from luthier.errors import RunError
from luthier.runs import atomic
from luthier.runs.folder import RunFolder
from luthier.runs.ledger_table import ledger_table
from luthier.runs.metrics import MetricsWriter
from luthier.runs.report import render_report, write_report
from luthier.runs.samples import Sample, append_samples, read_samples

EVIL = "<script>alert('x')</script><img src=x onerror=alert(1)>\"'&"
VOID = {"meta", "br", "path", "link", "img", "input"}


class Page(HTMLParser):
    """What a browser would see: the tags with their attributes, the text, and whether all is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def make(root: Path, *, word: str = "plain") -> RunFolder:
    folder = RunFolder.create(root, "a", config_yaml=f"model: {{name: {word!r}}}\nmethod: sft\n# {word}\n")
    with MetricsWriter(folder.metrics) as writer:
        writer.write("evaluation", 0, {"when": "before", "exact_match": 0.0, word: 0.5})
        for step in range(1, 41):
            loss = math.nan if step == 7 else 3 / step
            writer.write("train", step, {"loss": loss, "lr": 1e-4, "grad_norm": 1.0, "tokens": 100})
        writer.write("eval", 40, {"loss": 0.123})
        writer.write("evaluation", 40, {"when": "after", "exact_match": 0.875, word: 0.75})
    folder.write_json(
        folder.ledger, {"read": 10, "kept": 7, "truncated": 1, "dropped": 2, "reasons": {word: 2}}
    )
    folder.write_json(folder.environment, {"cpu": {"model": word, "flags": [word]}, "memory_bytes": 2**33})
    append_samples(
        folder.samples,
        [
            Sample("before", 0, f"ask {word}", f"before {word}", word),
            Sample("after", 0, "ask", f"after {word}", word),
        ],
    )
    folder.set_status("failed", step=40, num_steps=50, message=f"why {word}")
    return folder


def test_everything_is_in_it(tmp_path: Path) -> None:
    folder = make(tmp_path)
    path = write_report(folder)
    assert path == folder.report
    text = Page(path.read_text()).text
    for expected in (
        "failed",
        "why plain",
        "sft of plain",
        "exact match",
        "0 → 0.875",
        "40 of 50",
        "0.123",
        "4,000",
        "Loss",
        "Learning rate",
        "Gradient norm",
        "Tokens per second",
        "Not finite at step 7.",
        "before plain",
        "after plain",
        "truncated",
        "70.0 %",
        "8.0 GiB",
        "method: sft",
    ):
        assert expected in text, expected


def test_nothing_from_outside_is_loaded_and_nothing_from_data_runs(tmp_path: Path) -> None:
    text = render_report(make(tmp_path, word=EVIL))
    page = Page(text)
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not {"img", "link", "iframe", "object", "form"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name in ("src", "href") or name.startswith("on") for name in attributes)
    assert not re.search(r"url\(|@import|https?://", text)
    assert page.text.count(EVIL) >= 8, "shown as text in every place it came from"


@pytest.mark.parametrize(
    "files", [[], ["metrics.jsonl"], ["ledger.json"], ["samples.jsonl"], ["environment.json"]]
)
def test_a_run_that_has_just_started(tmp_path: Path, files: list[str]) -> None:
    folder = RunFolder.create(tmp_path, "a", config_yaml="model: m\n")
    for name in files:
        (folder.path / name).write_text("" if name.endswith("jsonl") else "{}")
    text = Page(render_report(folder)).text
    assert text.count("nothing yet") == 4
    assert "ledger.json was not written yet" in text and "No answers were saved" in text


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("metrics.jsonl", "metrics.jsonl, line 1: not a JSON object"),
        ("samples.jsonl", "samples.jsonl, line 1: not a JSON object"),
        ("ledger.json", "ledger.json cannot be read"),
        ("environment.json", "environment.json cannot be read"),
        ("status.json", "status.json cannot be read"),
        ("config.yaml", "config.yaml cannot be read"),
    ],
)
def test_a_part_that_is_broken_says_so_and_the_rest_is_shown(tmp_path: Path, name: str, says: str) -> None:
    folder = make(tmp_path)
    (folder.path / name).write_bytes(b"\xff{ [broken\n")
    text = Page(render_report(folder)).text
    assert says in text
    assert ("before plain" in text) == (name != "samples.jsonl")
    assert ("70.0 %" in text) == (name != "ledger.json")


def test_odd_but_valid_contents(tmp_path: Path) -> None:
    folder = make(tmp_path)
    folder.environment.write_text('{"x": [[1, {"y": null}], []], "z": 1e400}')
    folder.ledger.write_text('{"kept": "many", "dropped": [1, 2]}')
    folder.metrics.write_text(
        '{"kind": "train", "step": 1, "loss": "low"}\n{"kind": "eval", "step": 2.5, "loss": 1}\n'
    )
    folder.samples.write_text('{"when": "during"}\n{"when": "after", "index": 1, "answer": "alone"}\n')
    assert "alone" in Page(render_report(folder)).text


def test_one_step_and_ten_thousand(tmp_path: Path) -> None:
    for count in (1, 10_000):
        folder = RunFolder.create(tmp_path, f"n{count}", config_yaml="model: m\n")
        rows = [f'{{"kind": "train", "step": {step}, "loss": {5 / step}}}\n' for step in range(1, count + 1)]
        folder.metrics.write_text("".join(rows))
        assert f"at step {count:,}" in Page(render_report(folder)).text
        assert len(render_report(folder)) < 120_000


def test_a_full_disk_keeps_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path)
    before = write_report(folder).read_text()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(RunError, match="is full"):
        write_report(folder)
    assert folder.report.read_text() == before


def test_ledgers_of_several_sources_and_sums_that_do_not_add_up() -> None:
    page = Page(
        ledger_table(
            {"train": {"read": 3, "kept": 2, "dropped": {"empty": 1}}, "eval": {"read": 5, "kept": 4}}
        )
    )
    assert "read from train" in page.text and "empty" in page.text
    assert "5 rows were read, but 4 are accounted for." in page.text
    assert "3 rows were read" not in page.text


def test_rows_that_were_left_out_on_purpose_are_told_apart() -> None:
    ledger = {"read": 9, "kept": 5, "dropped": 4, "reasons": {"broken": 1, "bad": 3}}
    assert "on purpose" not in Page(ledger_table(ledger)).text
    assert "of these on purpose" in Page(ledger_table({**ledger, "set_aside": 3})).text


def test_the_newest_sample_of_each_kind_counts(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    append_samples(path, [Sample("before", 1, "p", "old"), Sample("before", 0, "q", "\ud800 é")])
    append_samples(path, [Sample("before", 1, "p", "new"), Sample("after", 1, "p", "better", "best")])
    zero, one = read_samples(path)
    assert zero["before"].answer == "\ud800 é" and "after" not in zero
    assert (one["before"].answer, one["after"].answer, one["after"].reference) == ("new", "better", "best")


def test_runs_never_import_torch() -> None:
    modules = sorted(path.stem for path in Path(runs.__path__[0]).glob("[a-z]*.py"))
    assert "report" in modules
    imports = "; ".join(f"import luthier.runs.{name}" for name in modules)
    check = "import sys; sys.exit(bool({'torch', 'transformers', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", f"{imports}; {check}"]).returncode == 0
