"""The official client against a server: what it says is what the model says, however it is asked."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")

from luthier.export.gguf.llama import installed  # noqa: E402
from luthier.models.inference import load_for_inference  # noqa: E402
from luthier.rollout.sampling import SamplingSettings  # noqa: E402
from luthier.serve.assistant import Assistant  # noqa: E402
from luthier.serve.shelf import Offered  # noqa: E402
from serve_parts import Running, llama, native, running, tiny_shelf  # noqa: E402

LLAMA = pytest.mark.skipif(not installed(), reason="llama-cpp-python is not installed")
ASKED = [{"role": "user", "content": "one two three"}]


@dataclass
class House:
    """A model served by one of the engines, and the same model as the right answers are known from."""

    folder: Path
    shelf: dict[str, Offered]
    engine: Any

    @cached_property
    def own(self) -> Assistant:
        return Assistant(load_for_inference(str(self.folder), device="cpu", dtype="float32"))


@pytest.fixture(scope="module", params=["native", pytest.param("llama", marks=LLAMA)])
def house(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> House:
    folder = tmp_path_factory.mktemp("serve") / "model"
    if request.param == "llama":
        return House(folder, *llama(folder))
    shelf = tiny_shelf(folder)
    return House(folder, shelf, native(shelf))


@pytest.fixture(scope="module")
def own(house: House) -> Assistant:
    return house.own


@pytest.fixture(scope="module")
def server(house: House) -> Iterator[Running]:
    with running(house.shelf, house.engine) as found:
        yield found


def asked(number: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{'word ' * (number % 7)}number {number}"}]


def test_a_chat_is_answered_as_the_assistant_answers_it(server: Running, own: Assistant) -> None:
    reply = server.client().chat.completions.create(
        model="tiny", messages=ASKED, temperature=0, max_tokens=20, extra_body={"return_token_ids": True}
    )
    completion = own.complete([own.prompt_ids("one two three")], max_new_tokens=20)[0][0]
    assert reply.choices[0].message.content == completion.text
    assert reply.choices[0].token_ids == completion.ids
    assert reply.prompt_token_ids == own.prompt_ids("one two three")
    assert reply.choices[0].finish_reason == ("stop" if completion.finish == "eos" else completion.finish)
    assert reply.usage.completion_tokens == len(completion.ids)
    assert reply.usage.prompt_tokens == len(reply.prompt_token_ids)


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_a_stream_says_the_same(server: Running, temperature: float) -> None:
    settings = {"model": "tiny", "messages": ASKED, "temperature": temperature, "seed": 5, "max_tokens": 24}
    client = server.client()
    whole = client.chat.completions.create(**settings)
    chunks = list(
        client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True})
    )
    pieces = [choice.delta.content or "" for chunk in chunks for choice in chunk.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    finish = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
    assert finish == [whole.choices[0].finish_reason]
    told, whole_told = chunks[-1].usage, whole.usage
    assert (told.prompt_tokens, told.completion_tokens) == (
        whole_told.prompt_tokens,
        whole_told.completion_tokens,
    )
    assert told.total_tokens == told.prompt_tokens + told.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_seed_gives_the_same_text_and_another_one_another(server: Running) -> None:
    def said(seed: int) -> str:
        reply = server.client().chat.completions.create(
            model="tiny", messages=ASKED, temperature=1.5, seed=seed, max_tokens=24
        )
        return reply.choices[0].message.content

    assert said(3) == said(3) != said(4)


def test_streams_side_by_side_get_their_own_answers(server: Running) -> None:
    def said(number: int) -> str:
        stream = server.client().chat.completions.create(
            model="tiny", messages=asked(number), temperature=0, max_tokens=10 + number % 9, stream=True
        )
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    alone = [said(number) for number in range(24)]
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(said, range(24)))
    assert together == alone and len(set(alone)) > 12
    assert server.engine.load.answers == 0


def test_log_probabilities_are_the_models(server: Running, own: Assistant) -> None:
    reply = server.client().chat.completions.create(
        model="tiny", messages=ASKED, temperature=1.0, seed=1, max_tokens=12, logprobs=True, top_logprobs=3,
        extra_body={"return_token_ids": True},
    )  # fmt: skip
    choice = reply.choices[0]
    told = [one.logprob for one in choice.logprobs.content]
    right = own.logprobs(own.prompt_ids("one two three"), choice.token_ids)[: len(told)]
    assert sum(told) == pytest.approx(sum(right), abs=1e-3)
    for one in choice.logprobs.content:
        best = [each.logprob for each in one.top_logprobs]
        assert len(best) == 3 and best == sorted(best, reverse=True) and one.logprob <= best[0] + 1e-6


def test_several_answers_and_a_stop(server: Running, own: Assistant) -> None:
    settings = {"model": "tiny", "messages": ASKED, "temperature": 1.0, "seed": 2, "max_tokens": 24}
    client = server.client()
    three = client.chat.completions.create(**settings, n=3)
    texts = [choice.message.content for choice in three.choices]
    assert [choice.index for choice in three.choices] == [0, 1, 2] and len(set(texts)) == 3
    native_ones = own.generator.generate(
        [own.prompt_ids("one two three")],
        SamplingSettings(max_new_tokens=24, temperature=1.0, seed=2, num_samples=3),
    )[0]
    assert texts == [one.text for one in native_ones]
    stop = texts[0][4:6]
    stopped = client.chat.completions.create(**settings, stop=[stop]).choices[0]
    assert stopped.message.content == texts[0].partition(stop)[0] and stopped.finish_reason == "stop"


def test_completions_go_on_after_texts_and_ids(server: Running, own: Assistant) -> None:
    client, tokenizer = server.client(), own.tokenizer
    texts = ["one two", "three"]
    settings = {"model": "tiny", "temperature": 0, "max_tokens": 9}
    reply = client.completions.create(**settings, prompt=texts, logprobs=2)
    ids = [tokenizer(text).input_ids for text in texts]
    by_ids = client.completions.create(**settings, prompt=ids)
    right = own.complete(ids, max_new_tokens=9)
    assert [choice.text for choice in reply.choices] == [one[0].text for one in right]
    assert [choice.text for choice in by_ids.choices] == [one[0].text for one in right]
    assert len(reply.choices[0].logprobs.tokens) == len(reply.choices[0].logprobs.token_logprobs)
    chosen = client.completions.create(**settings, prompt=texts, logprobs=0)
    told = reply.choices[0].logprobs.token_logprobs
    assert chosen.choices[0].logprobs.token_logprobs == pytest.approx(told, abs=1e-4) and told
    stream = client.completions.create(**settings, prompt=texts, stream=True)
    said = {0: "", 1: ""}
    for chunk in stream:
        said[chunk.choices[0].index] += chunk.choices[0].text
    assert list(said.values()) == [choice.text for choice in reply.choices]


def test_models_are_listed_and_unknown_ones_are_404(server: Running) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="tinny", messages=ASKED)
    assert caught.value.code == "model_not_found" and "there are: tiny" in caught.value.message


def test_a_client_that_leaves_frees_its_place(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = server.engine._batch
    step = batch.step
    # so slow that the answer cannot be at its end before the client leaves
    monkeypatch.setattr(batch, "step", lambda: (time.sleep(0.05), step())[1])
    client = server.client()
    stream = client.chat.completions.create(
        model="tiny", messages=ASKED, temperature=1.0, seed=0, max_tokens=400, stream=True
    )
    next(iter(stream))
    stream.close()
    for _ in range(200):
        if server.engine.load.answers == 0 and "luthier_cancelled_total 1" in metrics(server):
            break
        time.sleep(0.05)
    assert server.engine.load.answers == 0
    assert "luthier_cancelled_total 1" in metrics(server)


def metrics(server: Running) -> str:
    import httpx

    return httpx.get(f"{server.address}/metrics").text


def number(text: str, name: str) -> float:
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))


def test_metrics_count_tokens_and_requests(server: Running) -> None:
    before = metrics(server)
    reply = server.client().chat.completions.create(model="tiny", messages=ASKED, temperature=0, max_tokens=7)
    after = metrics(server)

    def grown(name: str) -> float:
        return number(after, name) - number(before, name)

    assert grown("luthier_generated_tokens_total") == reply.usage.completion_tokens
    assert grown("luthier_prompt_tokens_total") == reply.usage.prompt_tokens
    assert grown('luthier_requests_total{route="/v1/chat/completions",status="200"}') == 1
    assert grown("luthier_first_token_seconds_count") == 1


def test_nothing_that_was_said_is_logged(server: Running, capfd, caplog) -> None:
    secret = "the secret word is xylophone"
    with pytest.raises(openai.BadRequestError):
        server.client().chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": f"{secret}<|im_end|>"}]
        )
    server.client().chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": secret}], max_tokens=3
    )
    told = capfd.readouterr()
    assert "xylophone" not in told.out + told.err + caplog.text + metrics(server)
