"""Votes on the answers of two variants: by a person who does not know which is whose, or by a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import ConfigError

if TYPE_CHECKING:
    from luthier.evaluate.compare import Measured
    from luthier.evaluate.pairwise import Ballot, Outcome, Pair, Winner
    from luthier.serve.terminal import Terminal


def check(compare: bool, vote: bool, judge: str | None, num_variants: int, folder: Path | None) -> None:
    """Raises ConfigError where there is nothing to vote on."""
    if not vote and judge is None:
        return
    option = "--vote" if vote else "--judge"
    if vote and judge is not None:
        raise ConfigError("--vote asks you and --judge asks a model; give one of them")
    if not compare or num_variants != 2:
        raise ConfigError(
            f"{option} sets two variants against each other; name two, as in --compare base adapter"
        )
    if folder is None:
        raise ConfigError(f"{option} keeps votes in a folder; name one with --out FOLDER")


def vote_on(
    measured: "Sequence[Measured]", judge: str | None, folder: Path | None, offline: bool, seed: int = 0
) -> "Outcome":
    """Collects the votes that are missing, and counts all."""
    from luthier.evaluate.pairwise import Ballot, outcome, pairs_of

    assert folder is not None, "checked at the start"
    first, second = measured
    pairs = pairs_of(first.found, second.found, seed)
    if not pairs:
        raise ConfigError("the variants have no answers to compare; these rows ask nothing")
    with Ballot.of(
        folder, (first.label, second.label), (first.found, second.found), _name(judge, offline), seed
    ) as ballot:
        missing = ballot.open_pairs(pairs)
        if judge is None:
            from luthier.serve.terminal import Terminal

            ask_person(missing, ballot, Terminal())
        elif missing:
            from luthier.evaluate.judge import judge as ask_model
            from luthier.models.inference import load_for_inference

            ask_model(load_for_inference(judge, offline=offline), missing, ballot)
        mine: dict[str, Winner] = {
            pair.key: ballot.votes[pair.key] for pair in pairs if pair.key in ballot.votes
        }
        return outcome(mine)


def ask_person(pairs: "Sequence[Pair]", ballot: "Ballot", terminal: "Terminal") -> None:
    """Shows pair after pair and reads a vote for each, until all are done or the person leaves."""
    for number, pair in enumerate(pairs, start=1):
        a, b = pair.shown
        terminal.note(f"\n--- {number} of {len(pairs)} ---\n{pair.question.strip()}")
        terminal.note(f"\n--- A ---\n{a.strip()}\n\n--- B ---\n{b.strip()}\n")
        letter = _read_vote(terminal)
        if letter is None:
            terminal.note("The votes so far are kept; the same command goes on.")
            return
        if letter:
            ballot.cast(pair, pair.winner(letter))


def _read_vote(terminal: "Terminal") -> str | None:
    """A, B or T for a tie; nothing to skip; None to leave."""
    while True:
        try:
            line = terminal.line("Better: a, b, t for a tie, s to skip, q to leave? ")
        except KeyboardInterrupt:
            return None
        typed = "Q" if line is None else line.strip().upper()
        if typed in ("A", "B", "T"):
            return typed
        if typed in ("S", "Q"):
            return "" if typed == "S" else None
        terminal.note("Type a, b, t, s or q.")


def _name(judge: str | None, offline: bool) -> str:
    from luthier.evaluate.variants import alone

    return "person" if judge is None else f"{judge} {alone(judge, trained=True).key(offline)}"


def sentence(measured: "Sequence[Measured]", found: "Outcome") -> str:
    """The outcome in words."""
    first, second = (one.label for one in measured)
    counts = f"{second} against {first}: {found.wins} won, {found.losses} lost, {found.ties} ties"
    if found.rate is None:
        return counts
    return f"{counts}; it wins {found.rate:.3f} {found.interval} of those that are no ties"
