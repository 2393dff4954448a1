"""vLLM as the engine: the official client's answers are the model's own. And, without vLLM, what is made of orders.

vLLM is not among what the tests install; where it is there, a real one serves a tiny model and adapters on it.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

from lora_models import teach  # noqa: E402
from luthier.config.tree import Config  # noqa: E402
from luthier.errors import ConfigError, ModelError  # noqa: E402
from luthier.models.adapter_files import save_adapter  # noqa: E402
from luthier.models.inference import Parts, load_for_inference  # noqa: E402
from luthier.models.lora import apply_lora  # noqa: E402
from luthier.serve import vllm as engine_file  # noqa: E402
from luthier.serve import vllm_models  # noqa: E402
from luthier.serve.assistant import Assistant  # noqa: E402
from luthier.serve.opened import Asked  # noqa: E402
from luthier.serve.vllm import VllmEngine, opened  # noqa: E402
from luthier.serve.vllm_models import _refuse_few_bits, base_of, served  # noqa: E402
from serve_parts import Running, running, tiny_shelf  # noqa: E402
from tiny_runs import save_tiny_model  # noqa: E402

CPU = {"device": "cpu", "dtype": "float32"}
HEADS = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
"""The least size of heads that vLLM computes on a CPU."""
VLLM = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed")
ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "one two three"}]}


def asked(name: Path, **changes: Any) -> Asked:
    values = {"name": str(name), "adapters": {}, "called": "tiny", "offline": True, "answers": 8}
    return Asked(**{**values, "cache_tokens": 2048, "queue": 16, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and adapters beside it."""
    path = tmp_path_factory.mktemp("vllm")
    save_tiny_model(path / "base", intermediate_size=64, **HEADS)
    kinds: dict[str, dict[str, Any]] = {
        "first": {"rank": 4},
        "second": {"rank": 16, "target": ["q_proj", "down_proj"]},
        "lengths": {"rank": 2, "dora": True},
    }
    for seed, (name, options) in enumerate(kinds.items()):
        model = load_for_inference(str(path / "base"), **CPU).model
        apply_lora(model, **options)
        teach(model, seed=seed)
        save_adapter(model, path / name, base_name=str(path / "base"))
    return path


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Running]:
    adapters = {name: folder / name for name in ("first", "second")}
    found = opened(asked(folder / "base", adapters=adapters))
    with running(dict(found.shelf), found.engine) as one:
        yield one


def own(folder: Path, name: str = "") -> Assistant:
    return Assistant(load_for_inference(str(folder / (name or "base")), **CPU))


def question(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{'word ' * (number % 7)}number {number}"}]


@VLLM
def test_greedy_answers_are_those_of_our_own_engine(server: Running, folder: Path) -> None:
    for name in ("", "first", "second"):
        reply = server.client().chat.completions.create(
            **{**ASK, "model": name or "tiny"}, temperature=0, max_tokens=24, logprobs=True, top_logprobs=3,
            extra_body={"return_token_ids": True},
        )  # fmt: skip
        mine = own(folder, name)
        right = mine.complete([mine.prompt_ids("one two three")], max_new_tokens=24)[0][0]
        (choice,) = reply.choices
        assert choice.token_ids == right.ids and choice.message.content == right.text
        told = [one.logprob for one in choice.logprobs.content]
        assert told == pytest.approx(right.logp[: len(told)], abs=1e-3)
        assert all(len(one.top_logprobs) == 3 for one in choice.logprobs.content)
        assert all(one.top_logprobs[0].logprob == one.logprob for one in choice.logprobs.content)


@VLLM
def test_seeds_give_the_same_alone_and_in_company(server: Running) -> None:
    def said(number: int) -> str:
        stream = server.client().chat.completions.create(
            model=("tiny", "first", "second")[number % 3], messages=question(number), temperature=1.0,
            seed=number, max_tokens=8 + number % 5, stream=True,
        )  # fmt: skip
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    alone = [said(number) for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(said, range(12)))
    assert together == alone and len(set(alone)) > 9
    assert server.engine.load.answers == 0
    three = server.client().chat.completions.create(**ASK, temperature=1.0, seed=2, n=3, max_tokens=12)
    texts = [choice.message.content for choice in three.choices]
    assert len(set(texts)) == 3
    stop = texts[0][3:5]
    one = server.client().chat.completions.create(**ASK, temperature=1.0, seed=2, max_tokens=12, stop=[stop])
    assert one.choices[0].message.content == texts[0].partition(stop)[0]
    assert one.choices[0].finish_reason == "stop"


@VLLM
def test_a_client_that_leaves_frees_its_place(server: Running) -> None:
    stream = server.client().chat.completions.create(
        **ASK, temperature=1.0, seed=0, max_tokens=450, stream=True
    )
    next(iter(stream))
    stream.close()
    until(lambda: server.engine.load.answers == 0)
    until(lambda: not server.engine._vllm.output_processor.has_unfinished_requests())


class Told:
    """vLLM as far as the engine asks of it: it says the tokens of a script, one each few milliseconds."""

    def __init__(self, script: list[int], pause: float = 0.005):
        self.script, self.pause = script, pause
        self.errored, self.ended, self.seen, self.aborted = False, False, [], 0

    async def generate(
        self, prompt: dict[str, Any], params: Any, request: str, *, lora_request: Any
    ) -> AsyncIterator[Any]:
        self.seen.append((prompt["prompt_token_ids"], params, lora_request))
        try:
            for place, token in enumerate(self.script):
                await asyncio.sleep(self.pause)
                if token < 0:
                    raise ValueError("one line\nmore")
                likely = {
                    token: SimpleNamespace(logprob=-0.5, rank=2),
                    9: SimpleNamespace(logprob=-0.1, rank=1),
                }
                last = place + 1 == len(self.script)
                found = SimpleNamespace(
                    token_ids=[token], logprobs=[likely], finish_reason="length" if last else None
                )
                yield SimpleNamespace(outputs=[found])
        except GeneratorExit:
            self.aborted += 1
            raise
        except asyncio.CancelledError:
            self.aborted += 1
            raise

    def shutdown(self) -> None:
        self.ended = True


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """vLLM's place is taken."""
    found = Told(list(range(20, 60)))
    library = SimpleNamespace(
        SamplingParams=lambda **settings: settings,
        RequestOutputKind=SimpleNamespace(DELTA="delta"),
        LoRARequest=lambda *settings: settings,
        __version__="0.0",
    )
    monkeypatch.setattr(engine_file, "_library", lambda part="": library)
    monkeypatch.setattr(engine_file, "_started", lambda settings: found)
    return found


@pytest.fixture
def small(told: Told, tmp_path: Path) -> Iterator[Running]:
    """Room for two answers, and one that waits."""
    shelf = tiny_shelf(tmp_path / "model")
    engine = VllmEngine(shelf, {}, {"model": "tiny"}, most_rows=2, most_waiting=1)
    with running(shelf, engine, patience=1.0) as found:
        yield found
    assert told.ended


def post(server: Running, **changes: Any) -> Any:
    return httpx.post(f"{server.address}/v1/chat/completions", json={**ASK, **changes}, timeout=60)


def error(reply: Any) -> str:
    return reply.json()["error"]["message"]


def test_an_order_is_asked_for_as_it_is(small: Running, told: Told) -> None:
    reply = post(
        small, temperature=0.7, top_p=0.9, seed=4, n=2, max_tokens=6, logprobs=True, top_logprobs=1,
        return_token_ids=True,
    ).json()  # fmt: skip
    assert [choice["token_ids"] for choice in reply["choices"]] == [list(range(20, 26))] * 2
    assert reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] == -0.1
    (prompt, first, adapter), (_, second, _) = told.seen
    assert prompt == reply["prompt_token_ids"] and adapter is None
    assert (first["temperature"], first["top_p"], first["top_k"]) == (0.7, 0.9, 0)
    assert first["seed"] != second["seed"] and first["max_tokens"] == 6 and first["logprobs"] == 1
    assert first["ignore_eos"] and not first["detokenize"]
    post(small, temperature=0.7, seed=4, max_tokens=6)
    assert told.seen[-1][1]["seed"] == first["seed"]
    post(small, temperature=0, max_tokens=6)
    assert told.seen[-1][1]["seed"] is None and told.seen[-1][1]["logprobs"] == 0


def test_an_answer_that_is_at_its_end_is_asked_for_no_longer(small: Running, told: Told) -> None:
    assert post(small, max_tokens=3).json()["usage"]["completion_tokens"] == 3
    until(lambda: told.aborted == 1)
    told.script = [20, 21]  # vLLM ends it, and nobody knows why
    refused = post(small, max_tokens=30)
    assert refused.status_code == 500 and "vLLM broke the answer off after 2 tokens" in error(refused)


def test_what_vllm_refuses_is_told_and_its_own_end_ends_the_engine(small: Running, told: Told) -> None:
    told.script = [20, -1]
    refused = post(small)
    assert refused.status_code == 500 and error(refused) == "vLLM refused the request: one line"
    told.errored = True
    refused = post(small)
    assert refused.status_code == 503 and "vLLM broke down (one line); restart the server" in error(refused)
    assert post(small).status_code == 503
    assert httpx.get(f"{small.address}/health").status_code == 503


def test_too_many_answers_and_schemas(small: Running, told: Told) -> None:
    refused = post(small, n=3, temperature=1)
    assert refused.status_code == 413 and "asks for 3 answers, but the server has room for 2" in error(
        refused
    )
    if find_spec("llguidance") is not None:
        refused = post(small, response_format={"type": "json_object"})
        assert refused.status_code == 400 and "serve with --engine native" in error(refused)
    told.pause = 0.05
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(post(small, max_tokens=20).status_code))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    until(lambda: len(found) == 3)
    assert found == [429] * 3
    load = small.engine.load
    assert (load.answers, load.waiting) == (2, 1)
    for thread in threads:
        thread.join(30)
    assert sorted(found) == [200] * 3 + [429] * 3


def test_a_client_that_leaves_is_told_to_vllm(small: Running, told: Told) -> None:
    told.pause = 0.05
    stream = small.client().chat.completions.create(**ASK, max_tokens=30, stream=True)
    next(iter(stream))
    stream.close()
    until(lambda: told.aborted == 1 and small.engine.load.answers == 0)


def test_answers_that_are_not_done_when_patience_ends(small: Running, told: Told) -> None:
    told.pause = 5
    found: list[Any] = []

    def listen() -> None:
        try:
            found.append(post(small).status_code)
        except httpx.HTTPError as fault:
            found.append(fault)

    thread = threading.Thread(target=listen)
    thread.start()
    until(lambda: small.engine.load.answers == 1)
    small.close()
    thread.join(20)
    assert len(found) == 1 and told.aborted == 1


def test_vllm_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(settings: Any) -> Any:
        raise ValueError("no kernel for heads of 8\nmore")

    monkeypatch.setattr(engine_file, "_started", broken)
    engine = VllmEngine({}, {}, {"model": "tiny"}, most_rows=2, most_waiting=1)
    with pytest.raises(ModelError, match=r"vLLM cannot serve tiny: no kernel for heads of 8$"):
        engine.start()


def test_vllm_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine_file, "NEEDED", "no_such_package")
    with pytest.raises(ConfigError, match=r"not part of luthier: pip install vllm"):
        opened(asked(tmp_path))


def test_what_vllm_is_given(folder: Path) -> None:
    alone = served(asked(folder / "base"), base_of(asked(folder / "base")), 256)
    assert alone.rank is None and not alone.adapters and alone.shelf["tiny"].context == 256
    run = asked(folder / "first", adapters={"other": folder / "second"})
    base = base_of(run)
    both = served(run, base, 4096)
    assert base.folder == folder / "base" and base.dtype == "float32"
    assert base.bytes_of_token == 2 * 2 * 1 * 32 * 4  # keys and values, layers, heads, size, bytes
    assert both.rank == 16 and both.shelf["tiny"].context == 512 and both.shelf["other"].base == "tiny"
    assert both.adapters == {"tiny": folder / "first", "other": folder / "second"}
    words, loaded = both.shelf["tiny"].loaded, load_for_inference(str(folder / "base"), **CPU)
    assert words.eos_token_ids == loaded.eos_token_ids and words.num_tokens == loaded.num_tokens


def test_what_vllm_would_compute_otherwise_is_refused(folder: Path, tmp_path: Path) -> None:
    base = base_of(asked(folder / "base"))
    for adapters, why in (
        (
            {"x": folder / "lengths"},
            r"vLLM cannot serve the adapter of x .*DoRA's lengths.* luthier export --to vllm",
        ),
        ({"tiny": folder / "first"}, "the model itself is called so"),
        ({"x": tmp_path}, "neither an adapter nor a run that trained one"),
    ):
        with pytest.raises(ConfigError, match=why):
            served(asked(folder / "base", adapters=adapters), base, 512)
    for section in ("quant", "qat"):
        config: Any = SimpleNamespace(quant=None, qat=None)
        parts = Parts("base", None, folder / "first", config)
        _refuse_few_bits("run", parts)
        setattr(config, section, "nf4")
        with pytest.raises(
            ConfigError, match=rf"weights in few bits \({section}\).*luthier export run --to vllm"
        ):
            _refuse_few_bits("run", parts)
        with pytest.MonkeyPatch.context() as patch:  # beside a base, too
            patch.setattr(vllm_models, "find_parts", lambda name, parts=parts: parts)
            with pytest.raises(ConfigError, match=rf"weights in few bits \({section}\)"):
                served(asked(folder / "base", adapters={"x": folder / "first"}), base, 512)
        assert section in Config.model_fields


def test_an_engine_that_ended_while_idle_says_so() -> None:
    engine: Any = VllmEngine.__new__(VllmEngine)
    engine._failure, engine._vllm = None, SimpleNamespace(errored=False)
    assert engine.failure is None
    engine._vllm.errored = True
    assert engine.failure == "vLLM broke down; restart the server"


def until(done: Any) -> None:
    """Waits for something that happens soon."""
    for _ in range(600):
        if done():
            return
        time.sleep(0.02)
    raise AssertionError("it did not happen")
