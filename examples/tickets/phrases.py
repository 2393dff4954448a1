"""The words that the e-mails are made of, by what they say. make_tickets.py puts them together.

Slots: `{p}` the product with its article, `{q}` another product, `{o}` an order number, `{d}` a date,
`{a}` an amount. A phrase starts in lower case and carries no full stop; a question ends with its mark.
"""

PRODUCTS: dict[str, str] = {
    "Bramvo": "kettle",
    "Ostrel": "lamp",
    "Tarnik": "drill",
    "Plendo": "heater",
    "Mirdle": "mixer",
    "Zudro": "clock",
}
"""Invented names, and the plain word that customers may use for the thing instead."""

CORES: dict[str, tuple[str, ...]] = {
    "broken": (
        "{p} has stopped working",
        "{p} will not switch on any more",
        "{p} makes a burning smell",
        "there is a crack in {p}",
        "{p} dies after a minute",
        "smoke came out of {p}",
        "the switch of {p} is stuck",
        "{p} broke",
    ),
    "delivery": (
        "{p} has not arrived",
        "I am still waiting for {p}",
        "the parcel with {p} seems lost",
        "the tracking of {p} does not move",
        "the courier never brought {p}",
        "where is {p}?",
        "the shipment of {p} is late",
        "{p} was never delivered",
    ),
    "refund": (
        "I want my money back for {p}",
        "please refund {p}",
        "I returned {p} and was never repaid",
        "kindly reimburse me for {p}",
        "when do I get the money for {p}, which I returned?",
        "I sent {p} back and the credit is missing",
        "give me back what I paid for {p}",
        "we returned {p} and expect our money",
    ),
    "billing": (
        "I was charged twice for {p}",
        "the invoice for {p} is wrong",
        "you billed us too much for {p}",
        "my card was debited two times for {p}",
        "the discount is missing on the bill for {p}",
        "I do not recognise a charge for {p}",
        "we need a corrected invoice for {p}",
        "why is {p} dearer on the bill than in the shop?",
    ),
    "cancel": (
        "please cancel {p}",
        "I do not need {p} any more, stop the order",
        "do not ship {p}",
        "I ordered {p} by mistake, please withdraw it",
        "call off the purchase of {p}",
        "I changed my mind, do not send {p}",
        "can you stop {p} before it leaves?",
        "I will not take {p} after all",
    ),
    "question": (
        "does {p} work with a UK plug?",
        "how do I clean {p}?",
        "is {p} safe in a child's room?",
        "how loud is {p}?",
        "where do I find the manual of {p}?",
        "how long is the cable of {p}?",
        "what does the blue light on {p} mean?",
        "are there spare parts for {p}?",
    ),
}
"""What the customer is writing about: the ticket's `issue`."""

PRIORITIES: dict[str, tuple[str, ...]] = {
    "high": (
        "this is urgent",
        "please hurry",
        "we need it solved today",
        "I cannot wait any longer",
        "as soon as possible please",
        "every hour counts",
    ),
    "low": (
        "no rush",
        "it is not urgent",
        "whenever you have time",
        "take your time",
        "it can wait",
        "any day is fine",
    ),
    "normal": ("", "", "", "please let me know", "thanks for looking into it"),
}
"""How pressing it sounds: the ticket's `priority`. Saying nothing about it is normal."""

DATES: dict[str, tuple[str, ...]] = {
    "broken": ("it began on {d}", "this happened on {d}", "I noticed it on {d}"),
    "delivery": ("it was due on {d}", "you promised {d}", "it was planned for {d}"),
    "refund": ("you got it on {d}", "it went back on {d}", "the return was on {d}"),
    "billing": ("it was booked on {d}", "that was on {d}", "the bill is of {d}"),
    "cancel": ("I ordered on {d}", "the order is of {d}", "it was placed on {d}"),
    "question": ("I need it for {d}", "it is for a party on {d}", "we will use it on {d}"),
}
"""The date that belongs to the issue: the ticket's `date`."""

_PRICES = ("I paid {a}", "it cost {a}", "the price was {a}")
AMOUNTS: dict[str, tuple[str, ...]] = {
    "broken": _PRICES,
    "delivery": _PRICES,
    "refund": (*_PRICES, "the sum is {a}", "please send {a}"),
    "billing": ("the charge is {a}", "it is about {a}", "it says {a}"),
    "cancel": _PRICES,
    "question": _PRICES,
}
"""The amount that belongs to the issue: the ticket's `amount` and `currency`."""

ORDERS = ("order {o}", "my order is {o}", "order number {o}", "ref {o}")
"""The order that it is about: the ticket's `order`."""

DISTRACTORS: dict[str, tuple[str, ...]] = {
    "product": ("my {q} works fine", "the {q} is still great", "this is not about the {q}"),
    "order": ("order {o} came without trouble", "my older order {o} was fine", "ignore order {o}"),
    "date": ("I am away from {d}", "I wrote to you on {d}", "we are closed on {d}"),
    "amount": ("shipping was {a}, that is fine", "another shop asks {a}", "thanks for the voucher of {a}"),
    "chat": ("I like your shop", "it rains here all week", "greetings from the coast"),
}
"""What the ticket must not pick up, by what it could be mistaken for."""

OTHER_ISSUES: dict[str, str] = {
    "broken": "nothing is broken",
    "delivery": "the parcel came quickly",
    "refund": "I do not want a refund",
    "billing": "the invoice is right",
    "cancel": "I do not want to cancel",
}
"""One more kind of distractor: an issue that it is not. Never used with its own issue."""

GREETINGS = ("", "", "", "Hi,", "Hello,", "Dear support,")
SIGNATURES = ("", "", "", "Thanks", "The front desk", "The ops team")
