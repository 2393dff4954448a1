"""Bars are for terminals: in files and pipes there is all that is told, and no bar."""

import io
import sys

import pytest
from tqdm.auto import tqdm
from transformers.utils import logging

from luthier.models.compat import bars_on_terminals_only


@pytest.mark.parametrize("terminal", [False, True])
def test_bars_are_shown_on_terminals_only(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    shown = logging.is_progress_bar_enabled()
    with bars_on_terminals_only():
        print("before", file=sys.stderr)
        for _ in tqdm(range(3), desc="of tqdm itself"):  # as transformers' GGUF reader has it
            print("within\n", file=sys.stderr)
        for _ in logging.tqdm(range(3), desc="of transformers"):
            pass
        print("behind", file=sys.stderr)
    assert sys.stderr is stream and logging.is_progress_bar_enabled() == shown
    told = stream.getvalue()
    assert ("of tqdm itself" in told) == terminal and ("\r" in told) == terminal
    if not terminal:
        assert told.split() == ["before", *["within"] * 3, "behind"]
