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

_SUBJECTS = (
    "rivers",
    "bread",
    "clocks",
    "bees",
    "maps",
    "salt",
    "bridges",
    "snow",
    "kites",
    "ink",
    "wheat",
    "owls",
)
QUESTIONS = 2 * len(_SUBJECTS)
FIRST_DRAWN = len(_SUBJECTS)
"""The number of the first question that is not greedy."""
PAUSE = 0.5
"""Seconds after which a client that was refused comes again."""


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
    first: list[float] = field(default_factory=list)
    """Seconds to the first token."""
    resident: list[float] = field(default_factory=list)
    """GB that the server held, over time."""
    answered: list[int] = field(default_factory=list)
    """How many answers had ended at each of these times."""
    most_open: int = 0
    """Most streams that were answered at one time."""
    open: int = 0

    def report(self, count: Callable[[str], int]) -> dict[str, Any]:
        """In numbers for people; `count` tells the tokens of a text."""
        first = sorted(self.first)
        tokens = sum(map(count, self.texts))
        return {
            "answers": self.answers,
            "most_streams_open": self.most_open,
            "seconds": round(self.seconds, 1),
            "tokens_per_second": round(tokens / max(self.seconds, 1e-9), 1),
            "parted_by_rounding": self.parted,
            "mixed_up": self.mixed,
            "lost": len(self.lost),
            "lost_because": sorted(set(self.lost))[:5],
            "refused_429": dict(self.busy),
            "median_first_token_s": round(first[len(first) // 2], 2) if first else None,
            "resident_gb": [round(value, 3) for value in self.resident],
        }


def body(model: str, number: int, tokens: int) -> dict[str, Any]:
    """One of the questions, of unequal lengths: the first half greedy, the others drawn."""
    subject = _SUBJECTS[number % len(_SUBJECTS)]
    text = f"Tell me {'something ' * (number % 4)}about {subject}."
    drawn = {"temperature": 0.8, "seed": number} if number >= FIRST_DRAWN else {"temperature": 0}
    return {
        "model": model,
        "messages": [{"role": "user", "content": text}],
        "max_tokens": tokens,
        "stream": True,
        **drawn,
    }


async def ask(client: httpx.AsyncClient, request: dict[str, Any], load: Load) -> str | None:
    """The text of one answer; None if there is none."""
    began, said, ended = time.monotonic(), [""], False
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
            try:
                async for line in response.aiter_lines():
                    ended |= _read(line, said, began, load)
            finally:
                load.open -= 1
                load.texts.append(said[0])
    except (httpx.HTTPError, ValueError) as error:
        load.lost.append(f"{type(error).__name__}: {str(error)[:120]}")
        return None
    if not ended:
        load.lost.append("the stream ended without a finish_reason")
        return None
    return said[0]


def _read(line: str, said: list[str], began: float, load: Load) -> bool:
    """Takes a line of a stream. Whether the answer ends with it."""
    if not line.startswith("data: ") or line == "data: [DONE]":
        return False
    event, ended = json.loads(line[6:]), False
    if "error" in event:
        raise ValueError(f"an error in the stream: {event['error']}")
    for choice in event.get("choices", []):
        if text := choice["delta"].get("content"):
            if not said[0]:
                load.first.append(time.monotonic() - began)
            said[0] += text
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
        found = [await ask(client, body(model, number, tokens), load) for number in numbers]
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
) -> Load:
    """So many streams for a while; what is under way at the end is finished. `beyond` more may be refused.

    Args:
        alone: the answers to the questions with these `numbers`, asked alone.
    """
    load, end, began = Load(), time.monotonic() + seconds, time.monotonic()

    async def stream(number: int, client: httpx.AsyncClient) -> None:
        while time.monotonic() < end:
            this = number % len(alone)
            number += 1
            answer = await ask(client, body(model, numbers[this], tokens), load)
            if answer is None:
                await asyncio.sleep(PAUSE)
                continue
            load.answers += 1
            if answer != alone[this]:
                judge(load, answer, alone, this)

    async def watch() -> None:
        while resident is not None and time.monotonic() < end:
            load.resident.append(resident())
            load.answered.append(load.answers)
            await asyncio.sleep(max(0.5, seconds / 12))

    async with client_of(address) as client:
        await asyncio.gather(watch(), *(stream(number, client) for number in range(streams + beyond)))
    load.seconds = time.monotonic() - began
    if resident is not None:
        load.resident.append(resident())
        load.answered.append(load.answers)
    return load


async def timed(
    address: str, model: str, *, streams: int, seconds: float, tokens: int, first: int = 0
) -> Load:
    """What so many streams are told within a time, in which all of them are busy; then they leave."""
    load = Load()

    async def stream(number: int, client: httpx.AsyncClient) -> None:
        while True:
            await ask(client, body(model, number % len(_SUBJECTS), tokens), load)
            number += 1

    async with client_of(address) as client:
        tasks = [asyncio.ensure_future(stream(first + number, client)) for number in range(streams)]
        began = time.monotonic()
        await asyncio.sleep(seconds)
        load.seconds = time.monotonic() - began
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    load.answers = len(load.texts) - streams
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
