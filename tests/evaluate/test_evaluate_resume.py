"""Results lie on the disk row by row, and an evaluation that was killed goes on to the same numbers."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luthier.errors import RunError
from luthier.evaluate.journal import Answered, Journal, Predicted
from luthier.evaluate.task import Evaluation, Keep, evaluate
from luthier.models.inference import load_for_inference
from tiny_runs import save_tiny_model, write_chats

CHILD = """
import sys, time
from pathlib import Path
from luthier.evaluate.journal import Journal
from luthier.evaluate.task import Keep, evaluate
from luthier.models.inference import load_for_inference
write = Journal._write
def slow(self, kind, place, found):
    write(self, kind, place, found)
    if kind == "answered":
        time.sleep(0.15)
Journal._write = slow
model, data, folder = sys.argv[1:]
loaded = load_for_inference(model, dtype="float32")
evaluate(loaded, [data], answer_tokens=12, keep=Keep(Path(folder), "trained", "weights"))
"""


def numbers(found: Evaluation) -> dict[str, float]:
    return {"loss": found.loss, **found.values, "rows": found.num_rows}


def lines(folder: Path) -> list[dict]:
    (file,) = folder.glob("*.jsonl")
    return [json.loads(line) for line in file.read_bytes().splitlines()]


def test_a_killed_evaluation_goes_on(tmp_path: Path) -> None:
    model, data = save_tiny_model(tmp_path / "model"), write_chats(tmp_path / "test.jsonl", 14)
    loaded, folder = load_for_inference(str(model), dtype="float32"), tmp_path / "kept"
    whole = evaluate(loaded, [data], answer_tokens=12, keep=Keep(tmp_path / "whole", "trained", "weights"))
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(model), str(data), str(folder)],
        stderr=subprocess.PIPE,
        env=os.environ,
    )
    answered, deadline = 0, time.monotonic() + 90
    while answered < 3 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
        answered = sum(file.read_text().count('"answered"') for file in folder.glob("*.jsonl"))
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL, (child.stderr.read() if child.stderr else b"").decode()[-2000:]
    before = lines(folder)
    done = [line["example"] for line in before if line.get("kind") == "answered"]
    assert 3 <= len(done) < 14 and sum(line.get("kind") == "predicted" for line in before) == 14
    (file,) = folder.glob("*.jsonl")
    with file.open("a") as cut:
        cut.write('{"kind": "answered", "exam')  # as a kill in the middle of a line leaves it
    asked: list[int] = []
    found = evaluate(
        loaded,
        [data],
        answer_tokens=12,
        keep=Keep(folder, "trained", "weights"),
        progress=lambda done, total: asked.append(total),
    )
    assert numbers(found) == numbers(whole) and set(asked) == {14 - len(done)}
    after = lines(folder)
    assert after[: len(before)] == before
    texts = [
        {line["example"]: line["answer"] for line in kept if line.get("kind") == "answered"}
        for kept in (after, lines(tmp_path / "whole"))
    ]
    assert texts[0] == texts[1] and len(after) == 1 + 2 * 14
    again = evaluate(
        loaded, [data], answer_tokens=12, keep=Keep(folder, "trained", "weights"), metric_names=["chrf"]
    )
    assert lines(folder) == after and set(again.values) == {"chrf"}  # another metric needs no new answers


def test_other_weights_data_or_settings_begin_anew(tmp_path: Path) -> None:
    model, data = save_tiny_model(tmp_path / "model"), write_chats(tmp_path / "test.jsonl", 3)
    loaded, folder = load_for_inference(str(model), dtype="float32"), tmp_path / "kept"
    for keep, tokens in (
        (Keep(folder, "a/b", "1"), 2),
        (Keep(folder, "a/b", "2"), 2),
        (Keep(folder, "a/b", "1"), 3),
    ):
        evaluate(loaded, [data], answer_tokens=tokens, keep=keep)
    write_chats(data, 3, seed=9)
    evaluate(loaded, [data], answer_tokens=2, keep=Keep(folder, "a/b", "1"))
    assert len(list(folder.glob("a-b-*.jsonl"))) == 4
    evaluate(loaded, [data], answer_tokens=2, keep=Keep(folder, "a/b", "1"), num_rows=1)
    assert len(list(folder.glob("*.jsonl"))) == 4  # fewer rows are a part of the same


def test_a_journal_of_something_else_is_never_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with Journal.open(path, {"model": "1"}) as journal:
        journal.predict(0, Predicted(0, 1.0, 2.0, 1.0, 2))
        journal.answer(0, Answered(0, "q\u2028", "r", "a\ud800", 3, "eos", 0.1))
    with Journal.open(path, {"model": "1"}) as journal:
        assert journal.predicted[0].tokens == 2 and journal.answered[0].question == "q\u2028"
    with pytest.raises(RunError, match="an evaluation of something else"):
        Journal.open(path, {"model": "2"})
    path.write_text('{"about": {"model": "1"}}\n{"kind": "predicted", "example": 0, "wrong": 1}\n')
    with pytest.raises(RunError, match="cannot be read"):
        Journal.open(path, {"model": "1"})
