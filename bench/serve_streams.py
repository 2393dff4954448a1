"""Clients of a server: streams that ask, read their answer to the end and ask again, and what came of it.

Half of the questions are greedy, half are drawn with a seed of their own; each was asked alone before, so every answer
under load has one that it must be. Where they part, rounding may have decided between two tokens of nearly the same
probability: such answers are told apart from those that are nearer to another question's.
"""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from bench.serve_questions import Question, again

PAUSE = 0.5
"""Seconds after which a client that was refused comes again."""
PATIENCE = 10
"""How many times as long as was asked for streams may go on until all of them had their answers."""
MOST_WAITED = 60.0
"""Seconds for it in any case."""


@dataclass
class Load:
    """What came of it."""

    answers: int = 0
    parted: int = 0
    """Answers that are not those given alone but begin as these do."""
    mixed: int = 0
    """Answers that belong to another question."""
    lost: list[str] = field(default_factory=list)
    """Streams that ended without an end, and errors that are no clean 429: why."""
    busy: Counter[str] = field(default_factory=Counter)
    """Refused with 429, by the code of the error."""
    texts: list[str] = field(default_factory=list)
    """What was said while it was timed, also of answers that had not ended."""
    seconds: float = 0.0
    computed: float | None = None
    """Seconds of processors that the server took for it."""
    first: list[float] = field(default_factory=list)
    """Seconds to the first token."""
    resident: list[float] = field(default_factory=list)
    """GB that the server held, over time."""
    served: list[int] = field(default_factory=list)
    """How many clients had an answer at each of these times."""
    by_client: Counter[int] = field(default_factory=Counter)
    """Answers of each client."""
    most_open: int = 0
    """Most streams that were answered at one time."""
    open: int = 0
    going: list["_Said"] = field(default_factory=list)
    """Answers under way."""

    def begin(self) -> None:
        """From now on it counts what is said; not what was said before."""
        self.texts.clear()
        self.first.clear()
        for one in self.going:
            one.before = len(one.text)

    def report(self, count: Callable[[str], int]) -> dict[str, Any]:
        """In numbers for people; `count` tells the tokens of a text."""
        first = sorted(self.first)
        tokens = sum(map(count, self.texts))
        return {
            "answers": self.answers,
            "most_streams_open": self.most_open,
            "seconds": round(self.seconds, 1),
            "tokens_per_second": round(tokens / max(self.seconds, 1e-9), 1),
            "tokens_per_processor_second": self.computed and round(tokens / self.computed, 1),
            "parted_by_rounding": self.parted,
            "mixed_up": self.mixed,
            "lost": len(self.lost),
            "lost_because": sorted(set(self.lost))[:5],
            "refused_429": dict(self.busy),
            "median_first_token_s": round(first[len(first) // 2], 2) if first else None,
            "answers_of_a_client": [min(of), max(of)] if (of := list(self.by_client.values())) else None,
            "resident_gb": [round(value, 3) for value in self.resident],
        }


@dataclass
class _Said:
    """An answer under way."""

    text: str = ""
    before: int = 0
    """How many characters of it do not count."""


async def ask(client: httpx.AsyncClient, request: dict[str, Any], load: Load) -> str | None:
    """The text of one answer; None if there is none."""
    began, said, ended = time.monotonic(), _Said(), False
    try:
        async with client.stream("POST", "/v1/chat/completions", json=request) as response:
            if response.status_code == 429:
                _refused(response, json.loads(await response.aread()), load)
                return None
            if response.status_code != 200:
                load.lost.append(f"status {response.status_code}: {(await response.aread())[:120]!r}")
                return None
            load.open += 1
            load.most_open = max(load.most_open, load.open)
            load.going.append(said)
            try:
                async for line in response.aiter_lines():
                    ended |= _read(line, said, began, load)
            finally:
                load.open -= 1
                load.going.remove(said)
                load.texts.append(said.text[said.before :])
    except (httpx.HTTPError, ValueError) as error:
        load.lost.append(f"{type(error).__name__}: {str(error)[:120]}")
        return None
    if not ended:
        load.lost.append("the stream ended without a finish_reason")
        return None
    return said.text


def _read(line: str, said: _Said, began: float, load: Load) -> bool:
    """Takes a line of a stream. Whether the answer ends with it."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return False
    event, ended = json.loads(line[6:]), False
    if "error" in event:
        raise ValueError(f"an error in the stream: {event['error']}")
    for choice in event.get("choices", []):
        if text := choice["delta"].get("content"):
            if not said.text:
                load.first.append(time.monotonic() - began)
            said.text += text
        ended |= choice.get("finish_reason") is not None
    return ended


def _refused(response: httpx.Response, found: dict[str, Any], load: Load) -> None:
    """A 429 is clean if it says when to come again and why."""
    code = found.get("error", {}).get("code")
    if response.headers.get("retry-after", "").isdigit() and code:
        load.busy[code] += 1
    else:
        load.lost.append("a 429 that does not say when to come again, or why")


def client_of(address: str) -> httpx.AsyncClient:
    """A client with a connection for each stream."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=address, timeout=600, limits=limits)


async def asked_alone(address: str, model: str, tokens: int, numbers: Sequence[int]) -> list[str]:
    """The answers to these questions, each when there is no other."""
    load = Load()
    async with client_of(address) as client:
        found = [await ask(client, again(model, number, tokens), load) for number in numbers]
    if load.lost or None in found:
        raise SystemExit(f"questions asked alone were not answered: {load.lost or load.busy}")
    return [text or "" for text in found]


async def press(
    address: str,
    model: str,
    alone: Sequence[str],
    numbers: Sequence[int],
    *,
    streams: int,
    seconds: float,
    tokens: int,
    resident: Callable[[], float] | None = None,
    beyond: int = 0,
    least: int = 0,
) -> Load:
    """So many streams for a while; what is under way at the end is finished. `beyond` more may be refused.

    Args:
        alone: the answers to the questions with these `numbers`, asked alone.
        least: it goes on until so many clients as there are `streams` had so many answers each, up to `PATIENCE` times
            as long.
    """
    load, began = Load(), time.monotonic()

    def going() -> bool:
        lasted = time.monotonic() - began
        few = sum(number >= least for number in load.by_client.values()) < streams if least else False
        return lasted < seconds or (few and lasted < PATIENCE * seconds)

    async def stream(client_number: int, client: httpx.AsyncClient) -> None:
        number = client_number
        while going():
            this = number % len(alone)
            number += 1
            answer = await ask(client, again(model, numbers[this], tokens), load)
            if answer is None:
                await asyncio.sleep(PAUSE)
                continue
            load.answers += 1
            load.by_client[client_number] += 1
            if answer != alone[this]:
                judge(load, answer, alone, this)

    async def watch() -> None:
        while resident is not None and going():
            look()
            await asyncio.sleep(max(0.5, seconds / 60))

    def look() -> None:
        assert resident is not None
        load.resident.append(resident())
        load.served.append(len(load.by_client))

    async with client_of(address) as client:
        await asyncio.gather(watch(), *(stream(number, client) for number in range(streams + beyond)))
    load.seconds = time.monotonic() - began
    if resident is not None:
        look()
    return load


async def timed(
    address: str,
    model: str,
    *,
    streams: int,
    seconds: float,
    tokens: int,
    first: int = 0,
    question: Question = again,
    computed: Callable[[], float] | None = None,
) -> Load:
    """What so many streams are told within a time, once each of them has had an answer; then they leave.

    `computed` tells the seconds that the server has kept processors busy for.

    Each stream asks the questions `first` + its own number, and so many on as there are streams, and so on.
    """
    load, one_each = Load(), asyncio.Event()

    async def stream(number: int, client: httpx.AsyncClient) -> None:
        own = number
        while True:
            load.by_client[own] += await ask(client, question(model, number, tokens), load) is not None
            number += streams
            if sum(answers > 0 for answers in load.by_client.values()) == streams:
                one_each.set()

    async with client_of(address) as client:
        tasks = [asyncio.ensure_future(stream(first + number, client)) for number in range(streams)]
        await asyncio.wait_for(one_each.wait(), max(MOST_WAITED, PATIENCE * seconds))
        load.begin()
        began, before, spent = time.monotonic(), load.by_client.total(), computed and computed()
        await asyncio.sleep(seconds)
        load.seconds = time.monotonic() - began
        load.computed = computed and computed() - (spent or 0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        load.answers = load.by_client.total() - before
    return load


def judge(load: Load, answer: str, alone: Sequence[str], this: int) -> None:
    """Counts an answer that is not the one given alone: either no other shares more with it, or it is mixed up."""
    shared = [_shared(answer, other) for other in alone]
    load.parted += shared[this] == max(shared)
    load.mixed += shared[this] != max(shared)


def _shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
