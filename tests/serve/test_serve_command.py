"""The command `luthier serve` as a process: it says where it listens, answers, and ends in order at SIGTERM."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")

from gguf_models import saved  # noqa: E402
from luthier.export.gguf.llama import installed  # noqa: E402
from tiny_runs import save_tiny_model  # noqa: E402

ASKED = [{"role": "user", "content": "one two three"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("command") / "tiny")


@contextmanager
def served(
    folder: Path, *options: str, **environment: str
) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """The process, its address, and the lines that it wrote."""
    command = [sys.executable, "-m", "luthier", "serve", str(folder), "--port", "0", "--offline", *options]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", **environment}
    )
    lines: list[str] = []
    try:
        assert process.stderr is not None
        for line in process.stderr:
            lines.append(line)
            if found := re.search(r"Serving .* at (http://\S+)/v1", line):
                rest = threading.Thread(target=lambda: lines.extend(process.stderr or ()))
                rest.start()
                yield process, found[1], lines
                process.terminate()
                assert process.wait(60) == 0
                rest.join(10)
                return
        raise AssertionError("".join(lines))
    finally:
        process.kill()
        process.wait()


def client(address: str, key: str = "none") -> "openai.OpenAI":
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0, timeout=60)


def test_it_serves_with_a_key_and_finishes_what_was_begun(folder: Path) -> None:
    with served(folder, "--cache-tokens", "2048", LUTHIER_API_KEY="first second") as (
        process,
        address,
        lines,
    ):
        with pytest.raises(openai.AuthenticationError):
            client(address).models.list()
        known = client(address, "second")
        assert [model.id for model in known.models.list()] == ["tiny"]
        settings = {"model": "tiny", "messages": ASKED, "temperature": 1.5, "seed": 4, "max_tokens": 300}
        whole = known.chat.completions.create(**settings).choices[0]
        stream = iter(known.chat.completions.create(**settings, stream=True))
        first = [next(stream) for _ in range(3)]
        process.send_signal(signal.SIGTERM)
        rest = list(stream)
        said = "".join(chunk.choices[0].delta.content or "" for chunk in [*first, *rest])
        assert said == whole.message.content and rest[-1].choices[0].finish_reason == whole.finish_reason
        assert process.wait(60) == 0
    told = "".join(lines)
    assert "decoded from its parts" in told and "2,048 tokens" in told and "warning" not in told


@pytest.mark.skipif(not installed(), reason="llama-cpp-python is not installed")
def test_a_file_is_served_in_llama_cpp(tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    from luthier.export.gguf.write import write_gguf

    saved("llama", tmp_path / "model")
    write_gguf(tmp_path / "model", tmp_path / "mine.gguf", "q8_0")
    with served(tmp_path / "mine.gguf", "--answers", "3", LUTHIER_API_KEY="") as (process, address, lines):
        reply = client(address).chat.completions.create(model="mine.gguf", messages=ASKED, max_tokens=5)
        assert reply.choices[0].message.content
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    told = "".join(lines)
    assert (
        "mine.gguf: computed by llama.cpp (llama-cpp-python " in told and "3 answers and 3,072 tokens" in told
    )
    assert "llama_" not in told and "warning" not in told  # nothing of its own notes


def test_a_server_that_others_can_reach_warns_without_a_key(folder: Path) -> None:
    environment = {"LUTHIER_API_KEY": ""}
    options = ["--host", "0.0.0.0", "--name", "mine", "--cache-tokens", "256"]
    with served(folder, *options, **environment) as (_, address, lines):
        port = address.rpartition(":")[2]
        reply = client(f"http://127.0.0.1:{port}").completions.create(model="mine", prompt="a", max_tokens=2)
        assert reply.choices
        # whoever does not say how long the answer may be gets one that there is room for
        chat = client(f"http://127.0.0.1:{port}").chat.completions.create(model="mine", messages=ASKED)
        assert chat.usage is not None and chat.usage.completion_tokens <= 128
    assert "answers have at most 128 tokens where a request does not say" in "".join(lines)
    assert "warning: 0.0.0.0 can be reached by others and there is no key" in "".join(lines)
