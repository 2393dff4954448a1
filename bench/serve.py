"""Load on the server: so many streams at once for a while; nothing lost, nothing mixed up, memory flat; and how fast.

    python -m bench.serve MODEL [--streams 200] [--seconds 60] [--tokens 24]
    python -m bench.serve MODEL --against transformers --streams 16 --seconds 30 --tokens 64 [--rounds 3]

The first presses `luthier serve` with as many streams as it takes, and a few beyond that, which must be refused with
429 (serve_streams.py), for so long, and on until every stream had three answers. The status is 1 if an answer was lost
or mixed up, or memory grew by over 5 % from when every stream had an answer to the end, or there was no such time.

The second runs `luthier serve` and `transformers serve` (with its continuous batching, or without: `--plain`) side by
side, one of them stopped while the other is asked the same questions, in turns; the median counts. What is said in
`--seconds` counts, once each stream has had an answer, so that no server is measured while it starts. No question comes
twice. It is done once with questions behind one system prompt (`alike`), which both servers may read once (transformers
does, by default, in pages of 256 tokens), and once with questions that share nothing but what the template begins with
(`apart`). transformers serve needs transformers[serving]: fastapi, uvicorn, openai, rich, accelerate.
Both write a JSON into `--out` (bench/results otherwise).
"""

import argparse
import asyncio
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx

from bench.serve_questions import FIRST_DRAWN, KINDS, Question
from bench.serve_streams import Load, asked_alone, press, timed
from luthier.models.decoding.cache import BLOCK, blocks_for
from luthier.runs.environment import describe_environment

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).with_name("results")
BEYOND = 10
"""Clients more than the server takes."""
GROWTH = 0.05
EACH = 3
"""Answers that every stream is to have."""
FAR = 100_000
"""Between the numbers of the questions of two rounds, so that none is asked twice."""
SHORT, LONG = 40, 640
"""Room for a prompt in tokens: of questions that come again, and of those in a race with what is known of others."""


def resident(pid: int) -> float:
    """GB that the process holds."""
    fields = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in fields if line.startswith("VmRSS")) / 2**20


def computed(pid: int) -> float:
    """Seconds that the process has kept processors busy for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


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
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


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
        room = ["--cb-num-blocks", "512", "--cb-max-batch-tokens", "1024"]  # else it takes most of the memory
        batching = [] if options.plain else ["--continuous-batching", *room]
        types = ["--device", "cpu", "--dtype", dtype_of(options.dtype)]
        return [sys.executable, "-c", code, "serve", model, *at, *types, *batching]
    # Pressed, just what the streams need: memory is only taken with use, and what is known of earlier prompts would go
    # on to fill the rest. So all of it is taken once every stream was answered at one time.
    tokens = options.streams * BLOCK * blocks_for(options.tokens + (LONG if options.against else SHORT))
    room = ["--answers", str(options.streams), "--cache-tokens", str(tokens), "--queue", "1"]
    room += ["--offline", "--name", model]
    return [sys.executable, "-m", "luthier", "serve", model, *room, *at]


def dtype_of(asked: str) -> str:
    """What transformers computes in: what is fast here, as `luthier serve` chooses, if nothing else is asked for."""
    if asked != "auto":
        return asked
    import torch

    from luthier.models.device import pick_dtype

    return str(pick_dtype("auto", torch.device("cpu"))).removeprefix("torch.")


def pressed(options: argparse.Namespace, count: Callable[[str], int]) -> dict[str, Any]:
    """Presses our server; tells what came of it, and whether that is as it must be."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    numbers = [*range(options.questions), *range(FIRST_DRAWN, FIRST_DRAWN + options.questions)]
    with served(command_of("luthier", options, port), port) as pid:
        alone = asyncio.run(asked_alone(address, options.model, options.tokens, numbers))
        load = asyncio.run(
            press(
                address, options.model, alone, numbers, streams=options.streams, seconds=options.seconds,
                tokens=options.tokens, resident=lambda: resident(pid), beyond=BEYOND, least=EACH,
            )
        )  # fmt: skip
    report = load.report(count)
    growth = grown(load, options.streams)
    well = not load.lost and not load.mixed and load.busy and growth is not None and growth < GROWTH
    return {**report, "memory_grown_by": growth and round(growth, 4), "well": bool(well)}


def grown(load: Load, streams: int) -> float | None:
    """By which share the memory grew to the end since as many clients as streams had an answer; None: never."""
    pairs = zip(load.resident[:-1], load.served[:-1], strict=True)
    warm = next((held for held, served in pairs if served >= streams), None)
    return None if warm is None else load.resident[-1] / warm - 1


def raced(options: argparse.Namespace, count: Callable[[str], int]) -> dict[str, Any]:
    """Our server and the other in turns, by kind of questions."""
    names = ("luthier", options.against)
    rounds: dict[str, dict[str, list[dict[str, Any]]]] = {
        kind: {name: [] for name in names} for kind in options.kinds
    }
    with ExitStack() as stack:
        ports = {name: free_port() for name in names}
        pids = {}
        for name in names:
            pids[name] = stack.enter_context(served(command_of(name, options, ports[name]), ports[name]))
            warm(ports[name], options)
            os.kill(pids[name], signal.SIGSTOP)
        for number in range(options.rounds):
            for kind in options.kinds:
                for name in names if number % 2 == 0 else names[::-1]:
                    os.kill(pids[name], signal.SIGCONT)
                    load = asyncio.run(one_round(ports[name], pids[name], options, number, KINDS[kind]))
                    os.kill(pids[name], signal.SIGSTOP)
                    rounds[kind][name].append(load.report(count))
                    print(kind, name, json.dumps(rounds[kind][name][-1]), flush=True)
    return {kind: {**found, **compared(found, options.against)} for kind, found in rounds.items()}


def compared(found: dict[str, list[dict[str, Any]]], against: str) -> dict[str, Any]:
    """The medians of both, and how many times as fast ours is: by the clock, and by the processor's time, which other
    programs change less."""
    compared: dict[str, Any] = {}
    for what, name in (
        ("tokens_per_second", "times"),
        ("tokens_per_processor_second", "times_by_processor_time"),
    ):
        median = {name: statistics.median(one[what] for one in some) for name, some in found.items()}
        compared[f"median_{what}"] = median
        compared[name] = round(median["luthier"] / max(median[against], 1e-9), 2)
    return compared


def warm(port: int, options: argparse.Namespace) -> None:
    """One answer, so that everything is loaded."""
    asyncio.run(asked_alone(f"http://127.0.0.1:{port}", options.model, 4, [0]))


async def one_round(
    port: int, pid: int, options: argparse.Namespace, number: int, question: Question
) -> Load:
    """A round; then one more answer, which waits for whatever the server still does for the clients that left."""
    more = {"streams": options.streams, "seconds": options.seconds, "tokens": options.tokens}
    more |= {"first": number * FAR, "question": question, "computed": lambda: computed(pid)}
    load = await timed(f"http://127.0.0.1:{port}", options.model, **more)
    await asked_alone(f"http://127.0.0.1:{port}", options.model, 2, [0])
    return load


def folder(name: str) -> str:
    """Where the model is."""
    if Path(name).is_dir():
        return str(Path(name).resolve())
    from luthier.models.load import resolve_model

    return str(resolve_model(name))


def counter(model: str) -> Callable[[str], int]:
    """Counts the tokens of a text as the model's own tokenizer has them."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(Path(model) / "tokenizer.json"))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a folder, or demo:NAME")
    parser.add_argument("--streams", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--questions", type=int, default=6, help="greedy ones, and as many that are drawn")
    parser.add_argument("--against", choices=["transformers"])
    parser.add_argument("--plain", action="store_true", help="transformers without continuous batching")
    parser.add_argument(
        "--dtype", default="auto", help="of transformers serve; auto: what is fast here, as ours chooses"
    )
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    label, options.model = options.model, folder(options.model)
    kind = f"serve-against-{options.against}" if options.against else "serve-load"
    asked = {
        name: getattr(options, name)
        for name in ("streams", "seconds", "tokens", "questions", "rounds", "plain", "dtype")
    }
    found = (raced if options.against else pressed)(options, counter(options.model))
    date = datetime.now(UTC).strftime("%Y-%m-%d")
    model = Path(label).name
    result = {
        "kind": kind,
        "date": date,
        "model": model,
        "machine": describe_environment(),
        "asked": asked,
        "found": found,
    }
    result["load_average"] = [round(one, 1) for one in os.getloadavg()]
    path = options.out / f"{kind}{'-plain' if options.plain else ''}-{date}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(found), path, sep="\n")
    return 0 if found.get("well", True) else 1


if __name__ == "__main__":
    sys.exit(main())
