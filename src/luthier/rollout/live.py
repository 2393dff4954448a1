"""A batch that answers join and leave while it runs: what a server generates with.

Unlike the plan of one call (continuous.py), every answer has settings of its own and may be of another model. An answer
is the same alone and in any company, up to rounding: rows do not see each other, and draws are a function of the
answer's own seed.

Shape suffixes: P prompts, B answers, V vocabulary, K likeliest tokens.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from luthier.rollout.places import Begin, Places
from luthier.rollout.rows import Row
from luthier.rollout.sampling import SamplingSettings, choose, log_probability, row_uniforms
from luthier.rollout.text import Detokenizer, TextReader

T = TypeVar("T")
PROMPT_TOKENS = 2048
"""Tokens of prompts that are read between two tokens of those that are under way; one prompt may be longer."""

NO_NUMBERS = (
    "the model's logits are not finite, so no token can be drawn; its weights or its adapter are broken, or its dtype "
    "overflows"
)


class Rule(Protocol):
    """What an answer may go on with, such as a grammar."""

    def restrict(self, logits_V: Tensor) -> str:
        """Sets the logits of all tokens that are not allowed to minus infinity, in place; some are left.

        Not empty: why the rule cannot be followed any further.
        """
        ...

    def take(self, token: int) -> str:
        """The answer goes on with this token. Not empty: why the rule cannot be followed any further."""
        ...


@dataclass(frozen=True, eq=False)
class Order:
    """A prompt, and how its answers are to be made."""

    model: str
    """The name of the model that answers."""
    prompt: Sequence[int]
    settings: SamplingSettings
    limit: int
    """Most tokens of an answer: `max_new_tokens`, or fewer where the model's context ends."""
    top: int = 0
    """Of each token, also tell the log-probabilities of so many of the likeliest."""
    rule: Callable[[], Rule] | None = None
    """Makes the rule of one answer."""

    @property
    def begin(self) -> Begin:
        """What has to be read and kept for it."""
        return Begin(self.prompt, self.settings.num_samples, self.limit)


@dataclass(eq=False)
class Answer:
    """One answer under way."""

    order: Order
    row: Row
    place: Any
    draws: list[float]
    rule: Rule | None
    known: int = 0
    """How many tokens of the prompt did not have to be read anew."""
    likeliest: list[tuple[int, float]] = field(default_factory=list)
    """In the place of its newest token: the likeliest ones with their ln p."""
    broken: str = ""
    """Why it cannot go on, though it has not ended."""
    unruly: bool = False
    """Whether that is because its rule cannot be followed."""

    @property
    def going(self) -> bool:
        """Whether it has not ended."""
        return self.row.finish is None and not self.broken

    def obey(self, fault: str) -> None:
        """Ends the answer if its rule has one."""
        self.broken, self.unruly = fault, bool(fault)


@dataclass(frozen=True)
class Speaker:
    """A model in the batch."""

    places: Places
    eos: frozenset[int]
    tokenizer: Detokenizer


class LiveBatch:
    """Answers of one or more models.

    Args:
        speakers: the models by name.
        most_rows: most answers at a time.
    """

    def __init__(self, speakers: Mapping[str, Speaker], *, most_rows: int):
        self._speakers, self._most_rows = speakers, most_rows
        self.going: list[Answer] = []

    def ever_fits(self, order: Order) -> bool:
        """Whether there is room for the order once nobody else is there."""
        places = self._speakers[order.model].places
        return order.settings.num_samples <= self._most_rows and places.ever_fits(order.begin)

    def fitting(self, waiting: Iterable[Order]) -> list[Order]:
        """The first of these orders that there is room for now, and time to read before the others go on."""
        taken: list[Order] = []
        rows, tokens = len(self.going), 0
        for order in waiting:
            rows, tokens = rows + order.settings.num_samples, tokens + len(order.prompt)
            pending = [one.begin for one in taken]
            fits = self._speakers[order.model].places.fits(order.begin, pending)
            if not fits or rows > self._most_rows or (taken and tokens > PROMPT_TOKENS):
                break
            taken.append(order)
        return taken

    def join(self, orders: Sequence[Order]) -> list[Answer]:
        """Reads the prompts of orders that fit. Their answers, each with its first token."""
        joined: list[Answer] = []
        for name, some in _by(orders, lambda order: order.model).items():
            begun = self._speakers[name].places.begin([order.begin for order in some])
            groups = zip(some, begun.places, begun.known, strict=True)
            fresh = [self._answers(order, own, known) for order, own, known in groups]
            logits_PV = begun.logits_PV
            index = [number for number, own in enumerate(fresh) for _ in own]
            answers = [answer for own in fresh for answer in own]
            self._draw(name, answers, logits_PV[torch.tensor(index, device=logits_PV.device)])
            joined += answers
        self.going += joined
        self._part()
        return joined

    def step(self) -> list[Answer]:
        """One more token for every answer that is going. Returns them."""
        stepped = list(self.going)
        for name, answers in _by(stepped, lambda answer: answer.order.model).items():
            tokens = [answer.row.ids[-1] for answer in answers]
            logits_BV = self._speakers[name].places.step(tokens, [answer.place for answer in answers])
            self._draw(name, answers, logits_BV)
        self._part()
        return stepped

    def leave(self, orders: Sequence[Order]) -> None:
        """Ends the answers of these orders where they are."""
        gone = set(map(id, orders))
        for answer in self.going:
            if id(answer.order) in gone:
                answer.broken = "nobody waits for it"
        self._part()

    def _answers(self, order: Order, places: Sequence[Any], known: int) -> list[Answer]:
        return [self._answer(order, sample, place, known) for sample, place in enumerate(places)]

    def _answer(self, order: Order, sample: int, place: Any, known: int) -> Answer:
        settings = order.settings
        reader = TextReader(self._speakers[order.model].tokenizer, settings.stop)
        draws = row_uniforms(settings, 0, sample).tolist() if settings.temperature else []
        rule = order.rule() if order.rule else None
        return Answer(order, Row(0, sample, order.limit, reader), place, draws, rule, known)

    def _part(self) -> None:
        """Gives back the room of those that have ended."""
        for answer in self.going:
            if not answer.going:
                sound = answer.broken != NO_NUMBERS
                tokens = [*answer.order.prompt, *answer.row.ids] if sound else []
                self._speakers[answer.order.model].places.release(answer.place, tokens)
        self.going = [answer for answer in self.going if answer.going]

    def _draw(self, name: str, answers: Sequence[Answer], logits_BV: Tensor) -> None:
        """Gives each answer its next token."""
        logits_BV = logits_BV.float()
        token_B = _chosen(answers, _restricted(answers, logits_BV))
        logp_B = log_probability(logits_BV, token_B)
        likeliest = _likeliest(answers, logits_BV)
        # One transfer, the only point of a step where the program waits for the device.
        tokens, logps = torch.stack([token_B.double(), logp_B.double()]).tolist()
        for place, (answer, token, logp) in enumerate(zip(answers, tokens, logps, strict=True)):
            if answer.unruly:
                continue
            if not math.isfinite(logp):
                answer.broken = NO_NUMBERS
                continue
            answer.row.push(int(token), logp, self._speakers[name].eos)
            answer.likeliest = likeliest.get(place, [])
            if answer.rule is not None and answer.row.finish is None:
                answer.obey(answer.rule.take(int(token)))


def _by(items: Iterable[T], key: Callable[[T], str]) -> dict[str, list[T]]:
    groups: dict[str, list[T]] = defaultdict(list)
    for item in items:
        groups[key(item)].append(item)
    return groups


def _restricted(answers: Sequence[Answer], logits_BV: Tensor) -> Tensor:
    """The logits that tokens are drawn from; the model's own stay as they are."""
    ruled = [(place, answer) for place, answer in enumerate(answers) if answer.rule is not None]
    if not ruled:
        return logits_BV
    logits_BV = logits_BV.clone()
    for place, answer in ruled:
        assert answer.rule is not None
        answer.obey(answer.rule.restrict(logits_BV[place]))
    return logits_BV


def _chosen(answers: Sequence[Answer], logits_BV: Tensor) -> Tensor:
    """The next token of each answer, [B]: drawn together where settings are the same."""
    kinds: dict[tuple[float, int | None, float], list[int]] = defaultdict(list)
    for place, answer in enumerate(answers):
        own = answer.order.settings
        kinds[own.temperature, own.top_k, own.top_p].append(place)
    token_B = torch.empty(len(answers), dtype=torch.int64, device=logits_BV.device)
    for places in kinds.values():
        own = answers[places[0]].order.settings
        uniform_B = None
        if own.temperature:
            draws = [answers[place].draws[len(answers[place].row.ids)] for place in places]
            uniform_B = torch.tensor(draws, dtype=torch.float64, device=logits_BV.device)
        index = torch.tensor(places, device=logits_BV.device)
        some_BV = logits_BV if len(places) == len(answers) else logits_BV[index]
        token_B[index] = choose(some_BV, uniform_B, own)
    return token_B


def _likeliest(answers: Sequence[Answer], logits_BV: Tensor) -> dict[int, list[tuple[int, float]]]:
    """For the answers that are asked for it, by place: the likeliest tokens and their ln p."""
    asked = [place for place, answer in enumerate(answers) if answer.order.top]
    if not asked:
        return {}
    most = max(answers[place].order.top for place in asked)
    logp_BV = logits_BV[torch.tensor(asked, device=logits_BV.device)].log_softmax(-1)
    top_BK, token_BK = logp_BV.topk(min(most, logp_BV.shape[1]), dim=-1)
    found = zip(asked, token_BK.tolist(), top_BK.tolist(), strict=True)
    return {
        place: list(zip(tokens, logps, strict=True))[: answers[place].order.top]
        for place, tokens, logps in found
    }
