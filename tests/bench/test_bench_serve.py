"""Many streams at once: answers are whole and their own, those beyond the limits get a clean 429, room comes back."""

import asyncio
import threading
from typing import Any

import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from bench import serve_questions as questions  # noqa: E402
from bench import serve_streams as streams  # noqa: E402
from luthier.serve.gate import Doors  # noqa: E402
from luthier.serve.shelf import Offered  # noqa: E402
from serve_parts import Running, native, running, tiny_shelf  # noqa: E402

STREAMS, TOKENS = 50, 12


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Offered]:
    return tiny_shelf(tmp_path_factory.mktemp("load") / "model")


def free_blocks(server: Running) -> int:
    return server.engine._batch._speakers["tiny"].places.cache.num_free


def settled(server: Running) -> bool:
    """Whether nothing is under way: no request, no answer, no order."""
    engine = server.engine
    return not (server.gate.open or engine.load.answers or engine.load.waiting or engine._going)


async def until_settled(server: Running) -> None:
    for _ in range(400):
        if settled(server):
            return
        await asyncio.sleep(0.025)
    raise AssertionError(f"{server.gate.open} requests open, {server.engine.load}")


def test_fifty_streams_get_whole_answers_of_their_own_and_those_beyond_a_429(shelf) -> None:
    engine = native(shelf, most_rows=20, most_waiting=STREAMS)  # so most of them wait for their turn
    with running(shelf, engine, doors=Doors(open_requests=STREAMS)) as server:
        free = free_blocks(server)

        async def press() -> streams.Load:
            numbers = range(questions.QUESTIONS)
            alone = await streams.asked_alone(server.address, "tiny", TOKENS, numbers)
            assert len(set(alone)) > questions.QUESTIONS // 2  # else nothing could be seen to be mixed up
            more = {"streams": STREAMS, "seconds": 3, "tokens": TOKENS, "beyond": 10}
            load = await streams.press(server.address, "tiny", alone, numbers, **more)
            await until_settled(server)
            return load

        load = asyncio.run(press())
        assert not load.lost and load.mixed == 0
        # a client may see an answer's end after another has taken its place, so it may count one or two more
        assert load.answers >= STREAMS and load.most_open >= STREAMS - 5
        assert load.parted <= load.answers // 10  # two tokens as likely as each other, up to rounding
        assert set(load.busy) == {"too_many_requests"}
        assert free_blocks(server) == free


def test_streams_that_are_left_give_their_room_back(shelf) -> None:
    threads = threading.active_count()
    with running(shelf, native(shelf)) as server:
        free = free_blocks(server)

        async def leave() -> None:
            for _ in range(3):
                await streams.timed(server.address, "tiny", streams=20, seconds=0.3, tokens=100)
                await until_settled(server)

        asyncio.run(leave())
        assert free_blocks(server) == free
        assert httpx.get(f"{server.address}/health").status_code == 200
    assert threading.active_count() <= threads + 1  # the thread that writes prompts may still be there


def test_what_is_lost_or_mixed_up_is_seen() -> None:
    """The harness can fail."""
    load = streams.Load()
    alone = ["the sea is wide", "bread is baked", "the sun"]
    streams.judge(load, "the sea is blue", alone, 0)
    assert (load.parted, load.mixed) == (1, 0)
    streams.judge(load, "bread is old", alone, 0)
    assert (load.parted, load.mixed) == (1, 1)

    def answer(request: Any) -> Any:
        sent = {
            "/cut": httpx.Response(200, text='data: {"choices": [{"delta": {"content": "a"}}]}\n\n'),
            "/busy": httpx.Response(429, json={"error": {"code": None}}),
            "/failed": httpx.Response(500, json={}),
        }
        return sent[request.headers["x-way"]]

    async def ask(way: str) -> None:
        transport = httpx.MockTransport(answer)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://x", headers={"x-way": way}
        ) as client:
            assert await streams.ask(client, {}, load) is None

    for number, way in enumerate(("/cut", "/busy", "/failed"), 1):
        asyncio.run(ask(way))
        assert len(load.lost) == number
