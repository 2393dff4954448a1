"""Load on the server: so many streams at once for a while; nothing lost, nothing mixed up, memory flat; and how fast.

    python -m bench.serve MODEL [--streams 200] [--seconds 60] [--tokens 64] [--against transformers]

Each of the streams asks, reads its answer to the end, and asks again. Questions are greedy and few (`QUESTIONS`), and
each was asked alone before; an answer under load is compared with the one alone. Where they part, rounding may have
decided between two tokens of nearly the same probability: such answers are counted apart from those that are nearer to
another question's. A stream that ends without an end, or an error that is no 429, is lost.
With `--against transformers`, `transformers serve` is asked the same questions by as many streams.
"""

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from os.path import commonpath
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = 12
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


@dataclass
class Load:
    """What came of it."""

    answers: int = 0
    tokens: int = 0
    parted: int = 0
    """Answers that are not those given alone but begin as these do."""
    mixed: int = 0
    """Answers that belong to another question."""
    lost: int = 0
    busy: int = 0
    """Refused with 429."""
    seconds: float = 0.0
    first: list[float] = field(default_factory=list)
    """Seconds to the first token."""
    resident: list[float] = field(default_factory=list)
    """GB that the server held, over time."""

    def report(self) -> dict[str, Any]:
        """In numbers for people."""
        first = sorted(self.first)
        return {
            "answers": self.answers,
            "tokens_per_second": round(self.tokens / max(self.seconds, 1e-9), 1),
            "parted_by_rounding": self.parted,
            "mixed_up": self.mixed,
            "lost": self.lost,
            "refused_429": self.busy,
            "median_first_token_s": round(first[len(first) // 2], 2) if first else None,
            "resident_gb": [round(value, 2) for value in self.resident],
        }


def question(number: int) -> str:
    """One of the questions; of unequal lengths."""
    return f"Tell me {'something ' * (number % 4)}about {_SUBJECTS[number % len(_SUBJECTS)]}."


def body(model: str, number: int, tokens: int) -> dict[str, Any]:
    """The request."""
    messages = [{"role": "user", "content": question(number)}]
    return {"model": model, "messages": messages, "temperature": 0, "max_tokens": tokens, "stream": True}


async def ask(client: httpx.AsyncClient, request: dict[str, Any], load: Load) -> str | None:
    """The text of one answer; None if there is none. Its tokens are counted by its chunks: one for each."""
    began, said, ended, first = time.monotonic(), [], False, True
    async with client.stream("POST", "/v1/chat/completions", json=request) as response:
        if response.status_code == 429:
            load.busy += 1
            return None
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            for choice in json.loads(line[6:]).get("choices", []):
                if text := choice["delta"].get("content"):
                    if first:
                        load.first.append(time.monotonic() - began)
                        first = False
                    said.append(text)
                    load.tokens += 1
                ended |= choice.get("finish_reason") is not None
    if response.status_code != 200 or not ended:
        load.lost += 1
        return None
    return "".join(said)


async def press(address: str, model: str, options: argparse.Namespace, pid: int) -> Load:
    """All streams for the whole time."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=600, limits=limits) as client:
        warm = Load()
        alone = [await ask(client, body(model, n, options.tokens), warm) for n in range(QUESTIONS)]
        load, end = Load(), time.monotonic() + options.seconds
        began = time.monotonic()

        async def stream(number: int) -> None:
            while time.monotonic() < end:
                this = number % QUESTIONS
                number += 1
                try:
                    answer = await ask(client, body(model, this, options.tokens), load)
                except httpx.HTTPError:
                    load.lost += 1
                    continue
                if answer is None:
                    await asyncio.sleep(1)
                    continue
                load.answers += 1
                if answer != alone[this]:
                    judge(load, answer, alone, this)

        async def watch() -> None:
            while time.monotonic() < end:
                load.resident.append(resident(pid))
                await asyncio.sleep(max(1, options.seconds / 6))

        await asyncio.gather(watch(), *(stream(number) for number in range(options.streams)))
        load.seconds = time.monotonic() - began
        load.resident.append(resident(pid))
    return load


def judge(load: Load, answer: str, alone: list[str | None], this: int) -> None:
    """Counts an answer that is not the one given alone: either no other shares more with it, or it is mixed up."""
    shared = [len(commonpath([answer, other or ""])) for other in alone]
    load.parted += shared[this] == max(shared)
    load.mixed += shared[this] != max(shared)


def resident(pid: int) -> float:
    """GB that the process holds."""
    fields = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in fields if line.startswith("VmRSS")) / 2**20


@contextmanager
def served(command: list[str], port: int) -> Iterator[int]:
    """The server as a process, once it is well."""
    paths = [str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    process = subprocess.Popen(command, env=environment)
    try:
        for _ in range(600):
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.2)
            if process.poll() is not None:
                raise SystemExit("the server ended before it listened")
        yield process.pid
    finally:
        process.terminate()
        process.wait(60)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def command_of(name: str, options: argparse.Namespace, port: int) -> list[str]:
    """How a server is started."""
    model, at = options.model, ["--host", "127.0.0.1", "--port", str(port)]
    if name == "transformers":
        code = "from transformers.cli.transformers import main; main()"
        return [sys.executable, "-c", code, "serve", model, *at, "--continuous-batching", "--device", "cpu"]
    room = ["--answers", str(options.streams), "--queue", str(options.streams), "--offline", "--name", model]
    return [sys.executable, "-m", "luthier", "serve", model, *room, *at]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--against", choices=["transformers"])
    options = parser.parse_args()
    found: dict[str, Any] = {"streams": options.streams, "tokens": options.tokens, "questions": QUESTIONS}
    for name in ("luthier", *([options.against] if options.against else [])):
        port = free_port()
        with served(command_of(name, options, port), port) as pid:
            load = asyncio.run(press(f"http://127.0.0.1:{port}", options.model, options, pid))
        found[name] = load.report()
        print(name, json.dumps(found[name]), flush=True)
    if options.against:
        ours, theirs = (found[name]["tokens_per_second"] for name in ("luthier", options.against))
        print(f"{ours / max(theirs, 1e-9):.2f} times the tokens a second")


if __name__ == "__main__":
    main()
