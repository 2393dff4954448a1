"""Laws of the quickstart's data: held-out rows are new, tickets follow the mails, files are reproducible."""

import datetime
import json
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.config.load import load_config
from luthier.evaluate.metrics import names

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "tickets"
SEEDS = st.integers(0, 2**32)


@pytest.fixture(scope="module")
def tickets() -> Iterator[ModuleType]:
    """The generator, imported the way the script finds its phrases: with its own folder on the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield import_module("make_tickets")
        for name in ("make_tickets", "phrases"):
            sys.modules.pop(name)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_script_writes_both_files(tmp_path: Path) -> None:
    """The way the README says, from another folder, without the installed packages."""
    command = [sys.executable, "-S", str(FOLDER / "make_tickets.py"), "--out", "new/data", "--train", "30"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [len(read(tmp_path / "new" / "data" / f"{name}.jsonl")) for name in ("train", "test")] == [30, 200]
    assert done.stdout.splitlines() == ["new/data/train.jsonl: 30 rows", "new/data/test.jsonl: 200 rows"]


def test_rows_are_chats_with_a_one_line_ticket(tickets: ModuleType, tmp_path: Path) -> None:
    assert tickets.main(["--out", str(tmp_path), "--train", "300"]) == 0
    for row in read(tmp_path / "train.jsonl") + read(tmp_path / "test.jsonl"):
        system, user, assistant = row["messages"]
        assert [m["role"] for m in row["messages"]] == ["system", "user", "assistant"]
        assert system["content"] == tickets.SYSTEM
        assert user["content"].strip() == user["content"] != ""
        ticket = json.loads(assistant["content"])
        assert assistant["content"] == json.dumps(ticket, separators=(",", ":"))
        assert list(ticket) == [key for key in tickets.KEYS if key in ticket]


@settings(deadline=None, max_examples=10)
@given(seed=SEEDS)
def test_held_out_rows_are_new(tickets: ModuleType, seed: int) -> None:
    """Stated here over again, from the finished rows, besides the generator's own check."""
    train, test = tickets.make_split(400, 200, seed)
    tickets.check_split(train, test)
    assert len({row.mail for row in train + test}) == 600
    for keys in (("product", "issue", "priority"), ("order",)):
        seen, held = (
            {tuple(row.ticket[k] for k in keys) for row in rows if keys[0] in row.ticket}
            for rows in (train, test)
        )
        assert seen
        assert held
        assert not seen & held
    known = {opening for row in train for opening in row.openings}
    assert sum(not row.openings <= known for row in test) >= 100


@settings(deadline=None, max_examples=5)
@given(seed=SEEDS)
def test_everything_held_out_can_be_learned(tickets: ModuleType, seed: int) -> None:
    """Every part of a held-out row occurs in training, and every pair of product and issue.

    With 2,000 rows a part is drawn 15 times or more on average, so a missing one is no bad luck but a fault.
    """
    train, test = tickets.make_split(2000, 200, seed)
    for key in ("product", "issue", "priority", "currency"):
        assert {row.ticket.get(key) for row in test} == {row.ticket.get(key) for row in train}
    assert {row.subject[:2] for row in test} <= {row.subject[:2] for row in train}
    cores = {opening[:2] for row in train for opening in row.openings}
    assert {opening[:2] for row in test for opening in row.openings} <= cores


@pytest.mark.parametrize("fault", ["mail", "subject", "order", "openings"])
def test_the_check_finds_what_is_shared(tickets: ModuleType, fault: str) -> None:
    train, test = tickets.make_split(60, 10, 0)
    first, mail = test[0], "a mail of its own"
    if fault == "mail":
        train.append(tickets.Row(first.mail, train[0].ticket, train[0].openings))
    elif fault == "subject":
        train.append(tickets.Row(mail, {k: first.ticket[k] for k in tickets.KEYS[:3]}, train[0].openings))
    elif fault == "order":
        order = next(row.ticket["order"] for row in test if "order" in row.ticket)
        train.append(tickets.Row(mail, {**train[0].ticket, "order": order}, train[0].openings))
    else:
        train.append(tickets.Row(mail, train[0].ticket, frozenset().union(*(row.openings for row in test))))
    messages = {
        "mail": "an e-mail occurs twice",
        "subject": "product, issue and priority are shared",
        "order": "an order number is shared",
        "openings": "0 of 10 held-out rows are composed in a new way",
    }
    with pytest.raises(AssertionError, match=messages[fault]):
        tickets.check_split(train, test)


def test_same_seed_same_bytes(tickets: ModuleType, tmp_path: Path) -> None:
    for name, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        tickets.main(["--out", str(tmp_path / name), "--train", "40", "--test", "20", "--seed", seed])
    for file in ("train.jsonl", "test.jsonl"):
        a, b, c = ((tmp_path / name / file).read_bytes() for name in "abc")
        assert a == b
        assert a != c


def test_more_training_rows_keep_the_first_and_the_test(tickets: ModuleType) -> None:
    short, long = tickets.make_split(50, 30, 3), tickets.make_split(120, 30, 3)
    assert long[0][:50] == short[0]
    assert long[1] == short[1]


@settings(deadline=None, max_examples=200)
@given(seed=SEEDS)
def test_what_the_ticket_says_stands_in_the_mail(tickets: ModuleType, seed: int) -> None:
    row = tickets.draw_row(random.Random(seed))
    mail, ticket = row.mail.lower(), row.ticket
    name = str(ticket["product"])
    assert name.lower() in mail or tickets.phrases.PRODUCTS[name] in mail
    if "order" in ticket:
        assert re.search(rf"\b{ticket['order']}\b", mail)
    if "amount" in ticket:
        written = f"{ticket['amount']:.2f}" if ticket["amount"] % 1 else str(ticket["amount"])
        assert written in mail or written.replace(".", ",") in mail
        marks = {"USD": ("$", "usd", "dollars"), "EUR": ("€", "eur"), "GBP": ("£", "gbp", "pounds")}
        assert any(mark in mail for mark in marks[ticket["currency"]])
    assert ("amount" in ticket) == ("currency" in ticket)
    if "date" in ticket:
        date = datetime.date.fromisoformat(str(ticket["date"]))
        styles = (*tickets.DATE_STYLES, *(tickets.YEARLESS_STYLES if date.year == tickets.YEAR else ()))
        assert any(style(date).lower() in mail for style in styles)


@settings(deadline=None, max_examples=200)
@given(seed=SEEDS)
def test_a_written_date_names_one_day(tickets: ModuleType, seed: int) -> None:
    """Two days are never written alike, and a date without a year is of the one year that the rule says."""
    written, iso = tickets.draw_date(random.Random(seed))
    date = datetime.date.fromisoformat(iso)
    assert date.year == tickets.YEAR or str(date.year) in written
    numbers = [int(number) for number in re.findall(r"\d+", written)]
    assert date.day in numbers
    assert f"{date:%b}" in written or date.month in numbers


def test_one_amount_in_each_style(tickets: ModuleType) -> None:
    rng = random.Random(0)
    drawn = [tickets.draw_amount(rng) for _ in range(20_000)]
    assert {currency for _, _, currency in drawn} == {"USD", "EUR", "GBP"}
    assert any("," in written for written, _, _ in drawn)
    for written, number, _ in drawn:
        digits = re.sub(r"[^0-9.]", "", written.replace(",", "."))
        assert json.dumps(number) == (digits.rstrip("0") if "." in digits else digits)


def test_ordinals(tickets: ModuleType) -> None:
    said = [tickets.ordinal(day) for day in (1, 2, 3, 4, 11, 12, 13, 21, 22, 23, 30, 31)]
    assert " ".join(said) == "1st 2nd 3rd 4th 11th 12th 13th 21st 22nd 23rd 30th 31st"


def test_rows_are_short_and_varied(tickets: ModuleType) -> None:
    """Short, for the quickstart's ten minutes; varied, so that there is something to learn."""
    train, test = tickets.make_split(760, 200, 0)
    rows = train + test
    assert sum(len(row.mail) for row in rows) / len(rows) < 180
    assert max(len(row.mail) for row in rows) < 320
    for key in ("order", "date", "amount"):
        assert 0.2 < sum(key in row.ticket for row in rows) / len(rows) < 0.6
    assert sum("none" not in {kind for _, _, kind in row.openings} for row in rows) > 0.6 * len(rows)
    for place in range(3):
        counts = Counter(row.subject[place] for row in train)
        assert max(counts.values()) < 2 * min(counts.values())


def test_phrases_say_only_what_they_are_filed_under(tickets: ModuleType) -> None:
    phrases = tickets.phrases
    groups = [
        *phrases.CORES.values(),
        *(set(p) for p in phrases.PRIORITIES.values()),
        *phrases.DISTRACTORS.values(),
    ]
    every = [phrase for group in groups for phrase in group if phrase]
    assert len(every) == len(set(every)), "one phrase with two meanings cannot be learned"
    assert all(core.count("{p}") == 1 for cores in phrases.CORES.values() for core in cores)
    assert set(phrases.DATES) == set(phrases.AMOUNTS) == set(phrases.CORES)
    assert set(phrases.OTHER_ISSUES) < set(phrases.CORES)
    for true, false in ((phrases.DATES, "date"), (phrases.AMOUNTS, "amount")):
        assert not {p for group in true.values() for p in group} & set(phrases.DISTRACTORS[false])
    assert not set(phrases.ORDERS) & set(phrases.DISTRACTORS["order"])


def test_sentences(tickets: ModuleType) -> None:
    parts = ["Hi,", "where is it?", "", "no rush", "R.K."]
    assert tickets.sentences(parts) == "Hi, Where is it? No rush. R.K."


@pytest.mark.parametrize("rows", ["0", "-3"])
def test_no_rows_to_write(
    tickets: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], rows: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        tickets.main(["--out", str(tmp_path), "--train", rows])
    assert caught.value.code == 2
    assert f"{rows} rows cannot be written; give 1 or more" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(
    tickets: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert tickets.main(["--out", str(tmp_path / "file"), "--train", "5", "--test", "5"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"--out {tmp_path / 'file'}: cannot be written (")
    assert message.endswith("); give a folder that can\n")


def test_the_config_is_valid_and_fits_the_rows(tickets: ModuleType) -> None:
    config = load_config(FOLDER / "run.yaml")
    assert config.model.name == "demo:smollm2-135m"
    assert config.data.path == ["examples/tickets/data/train.jsonl"]
    assert config.data.eval_path == ["examples/tickets/data/test.jsonl"]
    assert set(config.eval.metrics) <= set(names())
    assert "exact_match" in config.eval.metrics
    longest = max(len(row.mail) for row in tickets.make_split(760, 200, 0)[0])
    assert config.max_length > longest  # a token is at least one character of this text
