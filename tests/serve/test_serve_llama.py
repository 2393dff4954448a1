"""A GGUF file served by llama.cpp: who serves it, what it refuses, and how it ends. Its answers are in
test_serve_openai.py, beside those of our own engine."""

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("gguf")
openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

from gguf_models import saved  # noqa: E402
from luthier.cli.main import main  # noqa: E402
from luthier.errors import ConfigError, ModelError  # noqa: E402
from luthier.export.gguf.llama import installed  # noqa: E402
from luthier.export.gguf.write import write_gguf  # noqa: E402
from luthier.serve import opened as choice  # noqa: E402
from luthier.serve.opened import Asked, gguf_of, kind_for  # noqa: E402
from serve_parts import Running, llama, running  # noqa: E402

LLAMA = pytest.mark.skipif(not installed(), reason="llama-cpp-python is not installed")
ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "one two three"}]}


def asked(name: Path, **changes: Any) -> Asked:
    values = {"name": str(name), "adapters": {}, "called": None, "offline": True, "answers": 4}
    return Asked(**{**values, "cache_tokens": 512, "queue": 4, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama") / "model"
    saved("llama", folder, max_position_embeddings=512)
    write_gguf(folder, folder / "model.gguf", "f16")
    return folder


@pytest.fixture
def small(folder: Path) -> Iterator[Running]:
    """Room for two answers, and one request that waits."""
    shelf, engine = llama(folder, answers=2, cache_tokens=512, queue=1)
    with running(shelf, engine) as found:
        yield found


def test_a_file_is_served_by_llama_cpp_where_it_is_there(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = asked(folder / "model.gguf")
    monkeypatch.setattr(choice, "installed", lambda: True)
    assert kind_for(file) == ("llama", "")
    assert kind_for(asked(folder)) == ("native", "")  # a folder is what transformers reads
    assert kind_for(asked(folder / "no.gguf")) == ("native", "")  # which says that there is none
    kind, why = kind_for(asked(folder / "model.gguf", adapters={"x": folder}))
    assert kind == "native" and "adapters in folders cannot stand beside a GGUF in llama.cpp" in why
    monkeypatch.setattr(choice, "installed", lambda: False)
    kind, why = kind_for(file)
    assert kind == "native" and "pip install 'luthier[llama]'" in why and "decoded to bf16" in why


def test_the_file_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"write one with luthier export .* --to gguf:q8_0"):
        gguf_of(str(tmp_path))
    (tmp_path / "gguf").mkdir()
    (tmp_path / "gguf" / "a-f16.gguf").touch()
    assert gguf_of(str(tmp_path)) == tmp_path / "gguf" / "a-f16.gguf"
    (tmp_path / "gguf" / "a-q8_0.gguf").touch()
    with pytest.raises(ConfigError, match=r"2 GGUF files \(a-f16.gguf, a-q8_0.gguf\); give the path of one"):
        gguf_of(str(tmp_path))


def test_neither_an_adapter_nor_what_failed_its_proof_is_served(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    place = tmp_path / "gguf"
    place.mkdir()
    (place / "a-q8_0.unverified.gguf").touch()
    with pytest.raises(
        ConfigError, match=r"has none that is the model that was trained \(a-q8_0.unverified.gguf is not\)"
    ):
        gguf_of(str(tmp_path))
    writer = gguf.GGUFWriter(place / "a-lora.gguf", "llama")
    writer.add_type("adapter")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    (place / "a-f16.gguf").touch()
    assert gguf_of(str(tmp_path)) == place / "a-f16.gguf"


def test_llama_cpp_that_is_missing_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from luthier.rollout import llama_model
    from luthier.serve.llama import opened

    monkeypatch.setattr(llama_model, "installed", lambda: False)
    with pytest.raises(ModelError, match=r"pip install 'luthier\[llama\]'"):
        opened(asked(folder / "model.gguf"))


@LLAMA
def test_what_cannot_be_served_is_told(folder: Path) -> None:
    from luthier.serve.llama import opened

    with pytest.raises(ConfigError, match=r"--answers 9999: llama.cpp holds at most 256 at a time"):
        opened(asked(folder / "model.gguf", answers=9999))
    with pytest.raises(ConfigError, match=r"--adapter: llama.cpp serves a file as it is"):
        opened(asked(folder / "model.gguf", adapters={"x": folder}))


@LLAMA
def test_room_is_found_where_nothing_is_said(folder: Path) -> None:
    from luthier.serve.llama import opened

    found = opened(asked(folder, cache_tokens=None))
    assert found.tokens == 4 * 1024 and list(found.shelf) == ["model"]
    found.engine.start()
    assert found.ways["model"].startswith("computed by llama.cpp (llama-cpp-python ")
    found.engine.stop()
    found.engine.stop()  # as often as one likes


@LLAMA
def test_what_is_too_large_is_413_and_a_full_queue_429(small: Running) -> None:
    address = f"{small.address}/v1/chat/completions"
    refused = httpx.post(address, json={**ASK, "n": 3, "temperature": 1})
    assert refused.status_code == 413 and "room for 2 answers" in refused.json()["error"]["message"]
    step = small.engine._batch.step
    small.engine._batch.step = lambda: (time.sleep(0.02), step())[1]
    found: list[int] = []
    work = {**ASK, "max_tokens": 60, "temperature": 1.0, "seed": 1}
    threads = [
        threading.Thread(target=lambda: found.append(httpx.post(address, json=work, timeout=60).status_code))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert set(found) == {200, 429} and found.count(200) >= 3, found
    assert small.engine.load.answers == small.engine.load.waiting == 0
    assert httpx.post(address, json=work, timeout=60).status_code == 200


@LLAMA
def test_at_the_end_streams_are_finished(folder: Path) -> None:
    shelf, engine = llama(folder)
    settings = {**ASK, "max_tokens": 120, "temperature": 1.3, "seed": 3}
    with running(shelf, engine) as server:
        whole = server.client().chat.completions.create(**settings).choices[0].message.content
        stream = iter(server.client().chat.completions.create(**settings, stream=True))
        said = [next(stream) for _ in range(3)]
        server.server.close()
        said += stream
        assert "".join(chunk.choices[0].delta.content or "" for chunk in said) == whole


@LLAMA
def test_a_llama_cpp_that_breaks_down_is_told(folder: Path) -> None:
    shelf, engine = llama(folder)
    with running(shelf, engine) as server:
        engine._context._library = Broken(engine._context._library)
        refused = httpx.post(f"{server.address}/v1/chat/completions", json=ASK)
        assert refused.status_code == 503 and "(it says -3)" in refused.json()["error"]["message"]
        assert httpx.get(f"{server.address}/health").status_code == 503


class Broken:
    """llama.cpp, but it cannot read any more."""

    def __init__(self, library: Any):
        self._library = library

    def llama_decode(self, *_: Any) -> int:
        return -3

    def __getattr__(self, name: str) -> Any:
        return getattr(self._library, name)


@LLAMA
def test_answers_are_held_to_a_schema(folder: Path) -> None:
    pytest.importorskip("llguidance")
    shelf, engine = llama(folder)
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "number": {"type": "integer", "maximum": 99}},
        "required": ["colour", "number"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    with running(shelf, engine) as server:
        for temperature, number in ((0.0, 1), (1.5, 3)):
            reply = server.client().chat.completions.create(
                **ASK, temperature=temperature, n=number, seed=1, max_tokens=100, response_format=form
            )
            for one in reply.choices:
                answer = json.loads(one.message.content)
                assert one.finish_reason == "stop" and set(answer) == {"colour", "number"}
                assert answer["colour"] in ("red", "green") and answer["number"] <= 99


def test_options_that_do_not_go_together(tmp_path: Path, capsys) -> None:
    assert main(["serve", str(tmp_path), "--engine", "llama", "--port", "0"]) == 2
    assert "--engine llama serves GGUF files" in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--engine", "other", "--port", "0"]) == 2
