"""Pairs are blind and fair, votes are kept, and a judge who only likes what comes first decides nothing."""

import io
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.cli._evaluate_pairs import ask_person, check
from luthier.cli.main import main
from luthier.errors import ConfigError, ModelError, RunError
from luthier.evaluate import judge as judging
from luthier.evaluate.journal import Answered
from luthier.evaluate.pairwise import Ballot, Outcome, Pair, outcome, pairs_of
from luthier.evaluate.task import Evaluation
from luthier.models.inference import Loaded, load_for_inference
from luthier.serve.terminal import Terminal
from tiny_runs import save_tiny_model, write_chats


def answered(texts: list[str]) -> Evaluation:
    found = {
        f"{row}.1": Answered(row, f"q{row}", f"r{row}", text, 1, "eos", 0.1) for row, text in enumerate(texts)
    }
    return Evaluation(len(texts), 1.0, {}, answers=found)


def test_who_is_a_is_drawn_evenly_and_stays() -> None:
    first, second = answered(["x"] * 400), answered(["y"] * 400)
    pairs = pairs_of(first, second, seed=1)
    assert pairs == pairs_of(first, second, seed=1) != pairs_of(first, second, seed=2)
    assert 160 < sum(pair.swapped for pair in pairs) < 240
    assert [pair.key for pair in pairs_of(first, answered(["y"]))] == ["0.1"]


@pytest.mark.parametrize("swapped", [False, True])
def test_a_vote_is_for_the_model_whose_answer_was_shown(swapped: bool) -> None:
    pair = Pair("0.1", "q", "r", "good", "bad", swapped)
    letter = "AB"[pair.shown.index("good")]
    assert pair.winner(letter) == "first" == pair.the_other_way().winner("BA"["AB".index(letter)])
    assert pair.winner("C") == "tie"


def vote(pairs: list[Pair], ballot: Ballot, typed: str, monkeypatch: pytest.MonkeyPatch) -> str:
    notes = io.StringIO()
    monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
    ask_person(ballot.open_pairs(pairs), ballot, Terminal(io.StringIO(), notes, False))
    return notes.getvalue()


def test_votes_are_kept_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pairs_of(answered(["a", "b", "same", "d", "e"]), answered(["1", "2", " same", "4", "5"]))
    about = {"of": 1}
    with Ballot(tmp_path / "v.jsonl", about) as ballot:
        told = vote(pairs, ballot, "a\nwhat\ns\nb\nq\n", monkeypatch)
        assert (
            "Type a, b, t, s or q." in told
            and "the same command goes on" in told
            and "same" not in told.split("the ")[0]
        )
    with Ballot(tmp_path / "v.jsonl", about) as ballot:
        assert ballot.votes == {"2.1": "tie", "0.1": pairs[0].winner("A"), "3.1": pairs[3].winner("B")}
        assert [pair.key for pair in ballot.open_pairs(pairs)] == ["1.1", "4.1"]
        vote(pairs, ballot, "T\nA\n", monkeypatch)
        assert len(ballot.votes) == 5 and ballot.votes["1.1"] == "tie"
    with pytest.raises(RunError, match="votes on something else"):
        Ballot(tmp_path / "v.jsonl", {"of": 2})


def test_the_win_rate_leaves_ties_out() -> None:
    found = outcome({"a": "second", "b": "second", "c": "first", "d": "tie"})
    assert found == Outcome(2, 1, 1) and found.rate == pytest.approx(2 / 3)
    assert found.interval is not None and 0 < found.interval.low < 2 / 3 < found.interval.high < 1
    assert Outcome(0, 0, 3).rate is None and Outcome(0, 0, 3).interval is None


class Judge:
    """In the place of the generator: says what a rule says of the two answers it reads."""

    rule: Callable[[str, str], str] = staticmethod(lambda a, b: "A")
    max_positions = None

    def __init__(self, model: Any, **options: Any):
        self.decode = options["tokenizer"].decode

    def generate(self, prompts: list[list[int]], settings: Any) -> list[list[Any]]:
        found = []
        for prompt in prompts:
            text = self.decode(prompt)
            a, b = text.split("[Answer A]\n")[1].split("\n\n[Answer B]\n")
            said = type(self).rule(a, b.split("\n\nSay which")[0])
            found.append([type("Said", (), {"text": said})])
        return found


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load_for_inference(str(save_tiny_model(tmp_path_factory.mktemp("judge"))))


@pytest.mark.parametrize(
    ("rule", "wanted"),
    [
        (lambda a, b: "A", {"tie": 40}),  # likes what it reads first
        (lambda a, b: "Neither.", {"tie": 40}),
        (lambda a, b: "A" if a.startswith("good") else "**B**", {"second": 40}),
        (lambda a, b: "B is better" if "good" in b else "A", {"second": 40}),
    ],
)
def test_a_judge_reads_both_orders(
    rule: Any, wanted: dict, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judging, "NativeGenerator", Judge)
    monkeypatch.setattr(Judge, "rule", staticmethod(rule))
    pairs = pairs_of(answered(["bad<|im_end|>"] * 40), answered(["good"] * 40))
    with Ballot(tmp_path / "v.jsonl", {}) as ballot:
        judging.judge(loaded, pairs, ballot)
        assert Counter(ballot.votes.values()) == wanted
    with pytest.raises(ModelError, match="judge has no chat template"):
        judging.judge(Loaded(loaded.model, loaded.tokenizer, None, ()), pairs, ballot)


def test_the_command_with_a_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (str(save_tiny_model(tmp_path / name, tied=name == "a")) for name in ("a", "b"))
    data = write_chats(tmp_path / "test.jsonl", 3)
    config = Path(one) / "config.json"
    command = ["evaluate", one, other, "--data", str(data), "--compare", "--answer-tokens", "2", "--json"]
    command += ["--judge", one, "--out", str(tmp_path / "kept")]
    for context, status in ((200, 2), (4096, 0)):
        config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": context}))
        assert main(command) == status
    told = capsys.readouterr()
    assert "but the judge's context holds 200; choose a judge" in told.err
    votes = json.loads(told.out)["votes"]
    assert votes["won"] + votes["lost"] + votes["ties"] == 3
    (file,) = (tmp_path / "kept").glob("votes-*.jsonl")
    before = file.read_text()
    assert main(command) == 0 and file.read_text() == before


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((True, True, "x", 2, Path(".")), "give one of them"),
        ((False, True, None, 1, Path(".")), "--vote sets two variants"),
        ((True, False, "x", 3, Path(".")), "--judge sets two variants"),
        ((True, True, None, 2, None), "name one with --out"),
    ],
)
def test_what_cannot_be_voted_on(arguments: tuple, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check(*arguments)
