"""What may not come in, and how the server ends: every refusal in OpenAI's form, none of them a fault of the server."""

import contextlib
import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from luthier.errors import ConfigError  # noqa: E402
from luthier.serve.app import make_app  # noqa: E402
from luthier.serve.gate import Doors  # noqa: E402
from luthier.serve.place import take_place  # noqa: E402
from luthier.serve.prompts import Limits  # noqa: E402
from luthier.serve.run import Server, serve  # noqa: E402
from luthier.serve.shelf import Offered  # noqa: E402
from serve_parts import Running, Scripted, native, running, tiny_shelf  # noqa: E402

ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Offered]:
    return tiny_shelf(tmp_path_factory.mktemp("doors") / "model")


@pytest.fixture(scope="module")
def small(shelf: dict[str, Offered]) -> Iterator[Running]:
    """A server that takes little."""
    limits = Limits(prompt_tokens=60, answer_tokens=20, prompts=2)
    with running(shelf, native(shelf), limits=limits, doors=Doors(body_bytes=2000)) as found:
        yield found


def ask(server: Running, path: str = CHAT, headers: dict[str, str] | None = None, **changes: Any) -> Any:
    return httpx.post(f"{server.address}{path}", json={**ASK, **changes}, headers=headers, timeout=30)


def error(response: Any) -> dict[str, Any]:
    found = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


def test_keys_are_asked_for(shelf) -> None:
    with running(shelf, Scripted(shelf), doors=Doors(keys=("first", "second"))) as server:
        for key in ("first", "second"):
            assert server.client(api_key=key).chat.completions.create(**ASK).choices
        for header in (
            {},
            {"Authorization": "Bearer third"},
            {"Authorization": "first"},
            {"Authorization": "Bearer"},
        ):
            refused = ask(server, headers=header)
            assert refused.status_code == 401 and error(refused)["code"] == "invalid_api_key"
        assert httpx.get(f"{server.address}/metrics").status_code == 401
        assert httpx.get(f"{server.address}/health").json() == {"status": "ok"}


def test_large_bodies_are_refused_before_they_are_read(small) -> None:
    refused = ask(small, messages=[{"role": "user", "content": "x" * 3000}])
    assert refused.status_code == 413 and error(refused)["code"] == "body_too_large"

    def parts() -> Iterator[bytes]:  # without a length in front
        for _ in range(100):
            yield b" " * 100

    refused = httpx.post(f"{small.address}{CHAT}", content=parts())
    assert refused.status_code == 413


def test_tokens_have_limits(small, shelf) -> None:
    long = [{"role": "user", "content": "word " * 100}]
    assert (refused := ask(small, messages=long)).status_code == 413 and "takes 60" in error(refused)[
        "message"
    ]
    assert (refused := ask(small, max_tokens=21)).status_code == 413 and "at most 20" in error(refused)[
        "message"
    ]
    assert ask(small, max_tokens=20).json()["usage"]["completion_tokens"] <= 20
    assert ask(small).json()["usage"]["completion_tokens"] <= 20  # the usual length is bounded, too
    many = httpx.post(f"{small.address}/v1/completions", json={"model": "tiny", "prompt": ["a", "b", "c"]})
    assert many.status_code == 400 and "give 1 to 2" in error(many)["message"]
    with running(shelf, native(shelf)) as server:
        refused = ask(server, messages=[{"role": "user", "content": "word " * 600}])
        assert refused.status_code == 400 and error(refused)["code"] == "context_length_exceeded"
        near = ask(
            server, messages=[{"role": "user", "content": "abc " * 110}], temperature=0, max_tokens=500
        )
        usage = near.json()["usage"]
        assert usage["total_tokens"] <= 512  # the answer ends where the context does
        assert ask(server, n=17, temperature=1).status_code == 413  # the engine has room for 16


def test_a_full_queue_is_429_and_says_when_to_come_again(shelf) -> None:
    engine = Scripted(shelf, held=True, room=2)
    with running(shelf, engine) as server:
        found: list[Any] = []
        threads = [threading.Thread(target=lambda: found.append(ask(server))) for _ in range(2)]
        for thread in threads:
            thread.start()
        until(lambda: len(engine.open) == 2)
        refused = ask(server)
        assert refused.status_code == 429 and refused.headers["retry-after"].isdigit()
        assert error(refused)["type"] == "rate_limit_error" and error(refused)["code"] == "queue_full"
        engine.release()
        for thread in threads:
            thread.join(20)
        assert [one.status_code for one in found] == [200, 200]


def test_requests_that_there_is_room_for_do_not_fill_the_queue(shelf) -> None:
    with running(shelf, native(shelf, most_rows=8, most_waiting=1)) as server:
        found: list[int] = []
        threads = [
            threading.Thread(target=lambda: found.append(ask(server, max_tokens=20).status_code))
            for _ in range(9)
        ]
        for thread in threads:  # all of them before the engine's first token
            thread.start()
        for thread in threads:
            thread.join(30)
        assert found == [200] * 9


def test_open_requests_have_a_limit(shelf) -> None:
    engine = Scripted(shelf, held=True)
    with running(shelf, engine, doors=Doors(open_requests=1)) as server:
        thread = threading.Thread(target=lambda: ask(server))
        thread.start()
        until(lambda: len(engine.open) == 1)
        refused = ask(server)
        assert refused.status_code == 429 and error(refused)["code"] == "too_many_requests"
        engine.release()
        thread.join(20)


def test_a_client_that_leaves_before_its_answer_frees_its_place(shelf) -> None:
    engine = Scripted(shelf, held=True)
    with running(shelf, engine) as server:
        host, _, port = server.address.removeprefix("http://").partition(":")
        client = http.client.HTTPConnection(host, int(port))
        client.request("POST", CHAT, json.dumps(ASK), {"Content-Type": "application/json"})
        until(lambda: len(engine.open) == 1)
        client.close()
        until(lambda: not engine.open and len(engine.dropped) == 1)
        until(lambda: server.gate.open == 0)


def test_at_the_end_open_streams_are_finished_and_new_requests_sent_away(shelf) -> None:
    engine = Scripted(shelf, "a long goodbye", held=True)
    with running(shelf, engine) as server:
        said: list[str] = []

        def listen() -> None:
            stream = server.client().chat.completions.create(**ASK, stream=True)
            said.extend(chunk.choices[0].delta.content or "" for chunk in stream)

        thread = threading.Thread(target=listen)
        thread.start()
        until(lambda: len(engine.open) == 1)
        server.server.close()  # what SIGTERM does
        refused = ask(server)
        assert refused.status_code == 503 and "retry-after" in refused.headers
        assert httpx.get(f"{server.address}/health").status_code == 503
        engine.release()
        thread.join(20)
        assert "".join(said) == "a long goodbye"
        server.thread.join(20)
        assert not server.thread.is_alive()


def test_patience_has_an_end(shelf) -> None:
    engine = Scripted(shelf, held=True)
    with running(shelf, engine, patience=0.3) as server:
        thread = threading.Thread(target=lambda: swallow(lambda: ask(server)))
        thread.start()
        until(lambda: len(engine.open) == 1)
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < 15
        thread.join(20)


def test_an_engine_that_broke_down_is_told(shelf) -> None:
    engine = native(shelf)
    with running(shelf, engine) as server:

        def broken(*_: Any) -> Any:
            raise MemoryError("no more")

        engine._batch.join = broken  # type: ignore[union-attr]
        assert (refused := ask(server)).status_code == 503 and "broke down" in error(refused)["message"]
        assert ask(server).status_code == 503
        assert httpx.get(f"{server.address}/health").status_code == 503


def test_a_model_whose_logits_are_no_numbers_fails_that_request_only(shelf) -> None:
    with running(shelf, native(shelf)) as server:
        weight = shelf["tiny"].loaded.model.get_input_embeddings().weight
        kept = weight.data.clone()
        weight.data.fill_(float("nan"))
        try:
            refused = ask(server, max_tokens=4)
        finally:
            weight.data.copy_(kept)
        assert refused.status_code == 500 and "not finite" in error(refused)["message"]
        assert ask(server, max_tokens=4).status_code == 200


def test_wrong_options_are_told_before_anything_is_loaded(capsys, tmp_path) -> None:
    from luthier.cli.main import main

    (tmp_path / "a").mkdir()
    two = ["--adapter", f"x={tmp_path}/a", "--adapter", f"x={tmp_path}/a"]
    assert main(["serve", "no/such", "--adapter", "noname", "--adapter", "b=/no/folder", *two]) == 2
    told = capsys.readouterr().err
    assert "write it as NAME=PATH" in told and "no folder /no/folder" in told and "x is given twice" in told
    assert main(["serve", "no/such", "--api-key", "", "--port", "1"]) == 2
    assert "API key is empty" in capsys.readouterr().err
    assert main(["serve", "no/such", "--port", "70000"]) == 2


def test_a_place_that_cannot_be_listened_on_is_told_before_anything_is_loaded(capsys) -> None:
    from luthier.cli.main import main

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert main(["serve", "no/such", "--port", port]) == 2
        assert f"--port {port} is taken by another program" in (told := capsys.readouterr().err)
        assert "Loading" not in told
    for host, why in (("203.0.113.7", "is no address of this machine"), ("a..b", "there is no such address")):
        assert main(["serve", "no/such", "--port", "0", "--host", host]) == 2
        assert why in (told := capsys.readouterr().err) and "Loading" not in told


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "0.0.0.0"])
def test_a_place_that_was_taken_is_listened_on(shelf, host: str) -> None:
    engine = Scripted(shelf)
    with take_place(host, 0) as place:
        port = place.getsockname()[1]
        with pytest.raises(httpx.ConnectError):  # nobody waits for a model that loads
            httpx.get(f"http://127.0.0.1:{port}/health")
        server = Server(make_app(shelf, engine), host=host, port=port, patience=1)
        thread = threading.Thread(target=serve, args=(server, engine, place), daemon=True)
        thread.start()
        until(lambda: server.started)
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
        assert server.address.endswith(f":{port}")
        server.close()
        thread.join(20)
        assert not thread.is_alive()


def test_a_missing_package_is_named(monkeypatch) -> None:
    from luthier.cli import _serve

    monkeypatch.setattr(_serve, "NEEDED", ("fastapi", "no_such_package"))
    with pytest.raises(ConfigError, match=r"needs no_such_package; pip install 'luthier\[serve\]'"):
        _serve.refuse_missing()


def until(done: Any) -> None:
    """Waits for something that happens soon."""
    for _ in range(400):
        if done():
            return
        time.sleep(0.025)
    raise AssertionError("it did not happen")


def swallow(work: Any) -> None:
    with contextlib.suppress(httpx.HTTPError):
        work()
