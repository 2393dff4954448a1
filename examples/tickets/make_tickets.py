"""Writes the quickstart's data: made-up support e-mails and the JSON tickets they should become.

    python examples/tickets/make_tickets.py --out FOLDER [--train N] [--test 200] [--seed 0]

Each row is a chat: a short system message, the e-mail, the ticket on one line. A ticket has `product`,
`issue` and `priority`, and, only if the e-mail gives them, `order`, `date`, `amount` with `currency`, in this
order. What an e-mail does not give is left out. A date without a year is of 2026.

The held-out rows ask for more than remembering: no training row has the product, issue and priority of a
held-out row, none has its order number, and every second held-out row pairs an opening with a distractor
that never meet in training. `check_split` holds all of it. Only the standard library is used.
"""

import argparse
import datetime
import json
import random
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product as pairs
from pathlib import Path

import phrases

SYSTEM = "E-mail to JSON ticket."
KEYS = ("product", "issue", "priority", "order", "date", "amount", "currency")
YEAR = 2026
DATE_STYLES: tuple[Callable[[datetime.date], str], ...] = (
    lambda d: f"{d.day} {d:%B} {d.year}",
    lambda d: f"{d:%B} {d.day}, {d.year}",
    lambda d: d.isoformat(),
)
YEARLESS_STYLES: tuple[Callable[[datetime.date], str], ...] = (
    lambda d: f"{d.day} {d:%B}",
    lambda d: f"{d:%B} {d.day}",
    lambda d: f"the {ordinal(d.day)} of {d:%B}",
)
AMOUNT_STYLES: dict[str, tuple[str, ...]] = {
    "USD": ("${0}", "{0} USD", "{0} dollars"),
    "EUR": ("€{0}", "{1} EUR", "EUR {0}"),
    "GBP": ("£{0}", "{0} GBP", "{0} pounds"),
}
"""`{0}`: the number with a decimal point, `{1}`: with a decimal comma."""
LAYOUTS = ("CDP", "CPD", "DCP", "PCD")
"""Order of the parts: C what it is about, D distractors, P how pressing it is."""

Ticket = dict[str, str | int | float]


@dataclass(frozen=True)
class Row:
    """One e-mail with its ticket, and what it was composed of."""

    mail: str
    ticket: Ticket
    openings: frozenset[tuple[str, str, str]]
    """(issue, opening, kind of distractor) for each distractor; the kind is "none" where there is none."""

    @property
    def subject(self) -> tuple[str, str, str]:
        """Product, issue and priority: the combination that training and held-out rows never share."""
        return str(self.ticket["product"]), str(self.ticket["issue"]), str(self.ticket["priority"])

    def to_messages(self) -> dict[str, list[dict[str, str]]]:
        """The row as it stands in the file."""
        answer = json.dumps(self.ticket, separators=(",", ":"))
        contents = {"system": SYSTEM, "user": self.mail, "assistant": answer}
        return {"messages": [{"role": role, "content": content} for role, content in contents.items()]}


@dataclass(frozen=True)
class HeldOut:
    """The combinations kept away from training."""

    subjects: frozenset[tuple[str, str, str]]
    openings: frozenset[tuple[str, str, str]]


def ordinal(day: int) -> str:
    """A day of the month as people say it: 1st, 2nd, 23rd, 12th."""
    suffix = "th" if day in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return f"{day}{suffix}"


def draw_date(rng: random.Random) -> tuple[str, str]:
    """A date as the e-mail writes it and as the ticket does (ISO).

    What is hard comes more often than in a calendar, or a short training would hardly meet it: half of the days
    have one digit, which ISO fills up with a 0, and a year that is said is more often not the usual one.
    """
    with_year = rng.random() < 0.5
    year = rng.choice((YEAR, YEAR - 1, YEAR - 1)) if with_year else YEAR
    day = rng.randint(1, 9) if rng.random() < 0.5 else rng.randint(10, 28)  # 28: every month has it
    date = datetime.date(year, rng.randint(1, 12), day)
    return rng.choice(DATE_STYLES if with_year else YEARLESS_STYLES)(date), date.isoformat()


def draw_amount(rng: random.Random) -> tuple[str, float | int, str]:
    """An amount as the e-mail writes it, its number, its currency."""
    currency = rng.choice(list(AMOUNT_STYLES))
    whole, cents = rng.randrange(5, 250), rng.choice((0, 50, 90, 95, rng.randrange(1, 100)))
    written = f"{whole}.{cents:02d}" if cents else str(whole)
    number = float(written) if cents else whole  # not whole + cents / 100: 6 + 0.81 is 6.8100000000000005
    return rng.choice(AMOUNT_STYLES[currency]).format(written, written.replace(".", ",")), number, currency


def draw_name(rng: random.Random, product: str) -> str:
    """One of the ways to call a product: its name (most often), its name and kind, or only its kind."""
    kind = phrases.PRODUCTS[product]
    return rng.choice((product, product, f"{product} {kind}", kind))


def draw_order(rng: random.Random) -> tuple[str, int]:
    """An order number as the e-mail writes it, and the number."""
    number = rng.randrange(1000, 10000)
    return rng.choice(("{}", "#{}")).format(number), number


def draw_facts(rng: random.Random, issue: str) -> tuple[list[str], Ticket]:
    """The optional facts of a ticket and the phrases that give them."""
    said: list[str] = []
    facts: Ticket = {}
    if rng.random() < 0.4:
        written, facts["order"] = draw_order(rng)
        said.append(rng.choice(phrases.ORDERS).format(o=written))
    if rng.random() < 0.4:
        written, facts["date"] = draw_date(rng)
        said.append(rng.choice(phrases.DATES[issue]).format(d=written))
    if rng.random() < 0.3:
        written, facts["amount"], facts["currency"] = draw_amount(rng)
        said.append(rng.choice(phrases.AMOUNTS[issue]).format(a=written))
    rng.shuffle(said)
    return said, facts


def draw_distractor(rng: random.Random, kind: str, product: str, issue: str) -> str:
    """A phrase that gives no fact of the ticket although it looks as if it did."""
    if kind == "issue":
        return rng.choice([phrase for other, phrase in phrases.OTHER_ISSUES.items() if other != issue])
    other = rng.choice([name for name in phrases.PRODUCTS if name != product])
    return rng.choice(phrases.DISTRACTORS[kind]).format(
        q=draw_name(rng, other), o=draw_order(rng)[0], d=draw_date(rng)[0], a=draw_amount(rng)[0]
    )


def sentences(parts: Iterable[str]) -> str:
    """Joins phrases into sentences, each with a capital and an end."""
    ended = (part if part[-1] in "?,." else f"{part}." for part in parts if part)
    return " ".join(part[0].upper() + part[1:] for part in ended)


def tell(rng: random.Random, opening: str, facts: Sequence[str]) -> str:
    """The opening and the facts as one stretch of text, joined by stops, commas or dashes."""
    text = opening
    for fact in facts:
        join = rng.choice((". ", ". ", ", ", " - "))
        if text.endswith("?"):
            join = " "
        starts_sentence = join.strip() in ("", ".")
        text += join + (fact[0].upper() + fact[1:] if starts_sentence else fact)
    return text


def draw_row(rng: random.Random) -> Row:
    """One e-mail with its ticket, every choice drawn evenly."""
    product, issue = rng.choice(list(phrases.PRODUCTS)), rng.choice(list(phrases.CORES))
    priority = rng.choice(list(phrases.PRIORITIES))
    opening = rng.choice(phrases.CORES[issue])
    said, facts = draw_facts(rng, issue)
    kinds = rng.sample((*phrases.DISTRACTORS, "issue"), k=rng.choices((0, 1, 2), (3, 6, 1))[0])
    about = f"{rng.choice(('the', 'my', 'our'))} {draw_name(rng, product)}"
    parts = {
        "C": [tell(rng, opening.format(p=about), said)],
        "D": [draw_distractor(rng, kind, product, issue) for kind in kinds],
        "P": [rng.choice(phrases.PRIORITIES[priority])],
    }
    body = [phrase for part in rng.choice(LAYOUTS) for phrase in parts[part]]
    mail = sentences([rng.choice(phrases.GREETINGS), *body, rng.choice(phrases.SIGNATURES)])
    ticket: Ticket = {"product": product, "issue": issue, "priority": priority, **facts}
    in_order: Ticket = {key: ticket[key] for key in KEYS if key in ticket}
    return Row(mail, in_order, frozenset((issue, opening, kind) for kind in kinds or ["none"]))


def hold_out(seed: int) -> HeldOut:
    """The combinations that only held-out rows use: a sixth of each kind.

    Subjects are spread evenly: half of all (product, issue) pairs are held out at one of three priorities.
    """
    rng = random.Random(f"{seed}/held out")
    products, issues = list(phrases.PRODUCTS), list(phrases.CORES)
    priorities = list(phrases.PRIORITIES)
    for names in (products, issues, priorities):
        rng.shuffle(names)
    subjects = {
        (product, issue, priorities[(p + i) // 2 % len(priorities)])
        for (p, product), (i, issue) in pairs(enumerate(products), enumerate(issues))
        if (p + i) % 2 == 0
    }
    kinds = (*phrases.DISTRACTORS, "issue", "none")
    openings = [(issue, core, kind) for issue in issues for core in phrases.CORES[issue] for kind in kinds]
    return HeldOut(frozenset(subjects), frozenset(rng.sample(openings, k=len(openings) // 6)))


def draw_distinct(rng: random.Random, count: int, accepted: Callable[[Row, int], bool]) -> list[Row]:
    """`count` rows with different e-mails, each accepted at its index."""
    rows: dict[str, Row] = {}
    while len(rows) < count:
        row = draw_row(rng)
        if row.mail not in rows and accepted(row, len(rows)):
            rows[row.mail] = row
    return list(rows.values())


def make_split(num_train: int, num_test: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Training and held-out rows. A longer training set starts with the rows of a shorter one."""
    held = hold_out(seed)

    def for_test(row: Row, index: int) -> bool:
        return row.subject in held.subjects and (index % 2 == 1 or not row.openings.isdisjoint(held.openings))

    test = draw_distinct(random.Random(f"{seed}/test"), num_test, for_test)
    orders = {row.ticket["order"] for row in test if "order" in row.ticket}

    def for_train(row: Row, index: int) -> bool:
        seen = row.subject in held.subjects or row.ticket.get("order") in orders
        return not seen and row.openings.isdisjoint(held.openings)

    return draw_distinct(random.Random(f"{seed}/train"), num_train, for_train), test


def check_split(train: Sequence[Row], test: Sequence[Row]) -> None:
    """Asserts what the module promises about held-out rows, from the rows themselves."""
    assert len({row.mail for row in (*train, *test)}) == len(train) + len(test), "an e-mail occurs twice"
    shared = {row.subject for row in train} & {row.subject for row in test}
    assert not shared, f"product, issue and priority are shared: {shared}"
    orders = [{row.ticket["order"] for row in rows if "order" in row.ticket} for rows in (train, test)]
    assert orders[0].isdisjoint(orders[1]), "an order number is shared"
    known = frozenset[tuple[str, str, str]]().union(*(row.openings for row in train))
    new = sum(not row.openings <= known for row in test)
    assert 2 * new >= len(test), f"only {new} of {len(test)} held-out rows are composed in a new way"


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Writes one JSON object a line."""
    lines = [json.dumps(row.to_messages(), ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def count(text: str) -> int:
    """A number of rows from the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} rows cannot be written; give 1 or more")
    return number


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line, writes both files and says so; 2 if the folder cannot be written."""
    parser = argparse.ArgumentParser(description="Make support e-mails and their JSON tickets.")
    parser.add_argument("--out", type=Path, required=True, help="folder for train.jsonl and test.jsonl")
    parser.add_argument("--train", type=count, default=1000, help="training rows (%(default)s)")
    parser.add_argument("--test", type=count, default=200, help="held-out rows (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files (%(default)s)")
    options = parser.parse_args(arguments)
    train, test = make_split(options.train, options.test, options.seed)
    check_split(train, test)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        for name, rows in (("train.jsonl", train), ("test.jsonl", test)):
            write_rows(options.out / name, rows)
            print(f"{options.out / name}: {len(rows)} rows")
    except OSError as error:
        print(f"--out {options.out}: cannot be written ({error}); give a folder that can", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
