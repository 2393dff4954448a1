"""Whatever is sent, the server answers, and never with a fault of its own."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from luthier.serve.requests import ChatRequest, CompletionRequest  # noqa: E402
from serve_parts import Running, native, running, tiny_shelf  # noqa: E402

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    shelf = tiny_shelf(tmp_path_factory.mktemp("wrong") / "model")
    with running(shelf, native(shelf)) as found:
        yield found


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with httpx.Client(base_url=server.address, timeout=60) as found:
        yield found


@pytest.mark.parametrize(
    "changes, told",
    [
        ({"temprature": 1}, "there is no field 'temprature'; did you mean temperature?"),
        ({"temperature": 3}, "temperature: "),
        ({"temperature": "warm"}, "temperature: "),
        ({"temperature": 1e-9}, "temperature is 1e-09"),
        ({"top_p": 0}, "top_p: "),
        ({"n": 0}, "n: "),
        ({"n": 2, "temperature": 0}, "at temperature 0 all answers are the same"),
        ({"max_tokens": 10**30}, "max_tokens: "),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "say different things"),
        ({"seed": 2**64}, "seed: "),
        ({"stop": ["a"] * 17}, "stop takes at most 16"),
        ({"stop": [""]}, "stop takes at most 16"),
        ({"top_logprobs": 3}, "belong to logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: "),
        ({"stream_options": {"include_usage": True}}, "belong to stream"),
        ({"frequency_penalty": 1}, "frequency_penalty is not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias is not supported"),
        ({"tool_choice": "required"}, "tool_choice can be auto or none"),
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "user"}]}, "message 1 (user) has neither text nor tool calls"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "unknown role 'wizard'"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "image",
        ),
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
    ],
)
def test_wrong_values_are_400_and_named(client, changes: dict[str, Any], told: str) -> None:
    response = client.post(CHAT, json={**ASK, **changes})
    assert response.status_code == 400, response.text
    assert told in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"null", b"[]", b"\xff\xfe", b'{"model": "tiny"', b"[" * 100_000, b'{"a":' * 50_000,
        b'{"model": "tiny", "max_tokens": ' + b"9" * 5000 + b"}", b'{"model": NaN}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "hi", "\\ud800": "\\udfff"}]}',
        b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}', b'{"\\ud800": 1}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "tools": [{"\\ud800": "\\ud800"}]}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "chat_template_kwargs": {"self": 1}}',
        b'{"model": "tiny", "messages": [{"role": "user", "content": "x"}], "temperature": Infinity}',
    ],
)  # fmt: skip
def test_broken_bodies_are_400(client, body: bytes) -> None:
    for path in (CHAT, COMPLETIONS):
        for headers in ({"Content-Type": "application/json"}, {}):
            response = client.post(path, content=body, headers=headers)
            assert 400 <= response.status_code < 500, (path, response.status_code, response.text)
            assert response.json()["error"]["message"]


def test_unknown_routes_and_methods(client) -> None:
    missing = client.post("/chat/completions", json=ASK)
    assert missing.status_code == 404
    assert missing.json()["error"]["message"].endswith("did you mean /v1/chat/completions?")
    assert client.get("/").status_code == 404 and "the API is under /v1" in client.get("/").text
    assert client.get(CHAT).status_code == 405
    assert client.request("DELETE", "/v1/models").status_code == 405
    assert client.get("/v1/models/no%2Fsuch").status_code == 404


JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)
ROLE = st.sampled_from(["system", "user", "assistant", "tool", "developer", "x"])
MESSAGE = st.fixed_dictionaries(
    {"role": ROLE | JSON, "content": st.text(max_size=12) | JSON},
    optional={"tool_calls": JSON, "name": JSON, "weight": JSON, "reasoning_content": JSON},
)


def bodies(model: Any, rest: dict[str, Any]) -> Any:
    """Requests of which some fields make sense and others are anything."""
    fields = {name: JSON for name in model.model_fields if name not in ("model", *rest)}
    return st.fixed_dictionaries(
        {"model": st.just("tiny") | JSON, **rest}, optional={**fields, "extra": JSON}
    )


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(
    body=bodies(
        ChatRequest, {"messages": st.lists(MESSAGE, max_size=3) | JSON, "max_tokens": st.integers(-1, 3)}
    )
)
def test_no_chat_is_a_fault_of_the_server(client, body: dict[str, Any]) -> None:
    never_5xx(client, CHAT, body)


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(
    body=bodies(
        CompletionRequest,
        {"prompt": st.text(max_size=9) | st.lists(st.integers()) | JSON, "max_tokens": st.integers(-1, 3)},
    )
)
def test_no_completion_is_a_fault_of_the_server(client, body: dict[str, Any]) -> None:
    never_5xx(client, COMPLETIONS, body)


def never_5xx(client: Any, path: str, body: dict[str, Any]) -> None:
    content = json.dumps(body)
    response = client.post(path, content=content, headers={"Content-Type": "application/json"})
    assert response.status_code < 500, (response.text, content)


def test_the_server_is_well_after_all_this(client, server: Running) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.post(CHAT, json=ASK).status_code == 200
    assert server.engine.load.answers == 0 and server.engine.load.waiting == 0
    described = client.get("/openapi.json").json()
    assert {CHAT, COMPLETIONS} <= set(described["paths"])
