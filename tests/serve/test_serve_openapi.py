"""Requests that schemathesis makes of the server's own OpenAPI description: none is a fault of the server, and every
answer is one that the description tells of.

    pip install schemathesis && pytest tests/serve/test_serve_openapi.py
"""

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")
httpx = pytest.importorskip("httpx")

from luthier.serve.gate import Doors  # noqa: E402
from serve_parts import Running, native, running, tiny_shelf  # noqa: E402

OPERATIONS = {
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("POST", "/v1/embeddings"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/health"),
    ("GET", "/metrics"),
}


REFUSED = (
    "frequency_penalty", "presence_penalty", "logit_bias", "echo", "best_of", "suffix", "n", "tools",
    "tool_choice", "top_logprobs", "max_completion_tokens", "stream_options", "stop", "chat_template_kwargs",
)  # fmt: skip
"""Refused, or refused beside other fields, whatever they say."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    shelf = tiny_shelf(tmp_path_factory.mktemp("described") / "model")
    with running(shelf, native(shelf)) as found:
        yield found


def test_the_description_tells_all_routes_and_no_status_that_there_is_not(server: Running) -> None:
    found = httpx.get(f"{server.address}/openapi.json").json()
    told = {(method.upper(), path) for path, ways in found["paths"].items() for method in ways}
    assert told == OPERATIONS
    for ways in found["paths"].values():
        for operation in ways.values():
            assert "422" not in operation["responses"] and {"200", "500"} <= set(operation["responses"])
    chat = found["paths"]["/v1/chat/completions"]["post"]["responses"]
    assert set(chat["200"]["content"]) == {"application/json", "text/event-stream"}
    assert "security" not in found


def test_the_description_tells_that_keys_are_asked_for(server: Running, tmp_path) -> None:
    shelf = tiny_shelf(tmp_path / "model")
    with running(shelf, native(shelf), doors=Doors(keys=("secret",))) as locked:
        assert httpx.get(f"{locked.address}/openapi.json").status_code == 401
        header = {"Authorization": "Bearer secret"}
        found = httpx.get(f"{locked.address}/openapi.json", headers=header).json()
    assert found["security"] == [{"key": []}]
    assert found["components"]["securitySchemes"]["key"] == {"type": "http", "scheme": "bearer"}


def test_a_wrong_method_is_told_which_there_are(server: Running) -> None:
    refused = httpx.put(f"{server.address}/v1/chat/completions", json={})
    assert refused.status_code == 405 and refused.headers["allow"] == "POST"
    assert refused.json()["error"]["message"]


@pytest.mark.parametrize("way", ["positive", "negative"])
@pytest.mark.parametrize("method, path", sorted(OPERATIONS), ids=str)
def test_no_request_is_a_fault_of_the_server(server: Running, method: str, path: str, way: str) -> None:
    """`positive` requests fit the description, `negative` ones do not."""
    schemathesis = pytest.importorskip("schemathesis")
    import requests
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import strategies as st
    from schemathesis import GenerationMode
    from schemathesis.specs.openapi import checks

    operation = schemathesis.openapi.from_url(f"{server.address}/openapi.json")[path][method]
    if way == "negative" and not operation.body:
        pytest.skip("nothing to be wrong in: any text is a name")
    told = [
        checks.status_code_conformance,
        checks.content_type_conformance,
        checks.response_schema_conformance,
    ]

    @settings(
        max_examples=15, deadline=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink], database=None,
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=GenerationMode(way)), answered=st.booleans())
    def ask(case: Any, answered: bool) -> None:
        if isinstance(case.body, dict):  # else nearly all of them ask for a model that there is not
            sensible(case.body, answered)
        response = case.call(session=session, timeout=30)
        assert response.status_code < 500, response.text
        case.validate_response(response, checks=told)

    with requests.Session() as session:
        ask()
    assert httpx.get(f"{server.address}/health").json() == {"status": "ok"}


def sensible(body: dict[str, Any], answered: bool) -> None:
    """Asks for the model that there is, and for few tokens; `answered` leaves out what nearly always is refused."""
    if isinstance(body.get("model"), str):
        body["model"] = "tiny"
    for name in ("max_tokens", "max_completion_tokens"):
        if isinstance(body.get(name), int):
            body[name] = min(body[name], 3)
    if not answered:
        return
    for name in REFUSED:
        body.pop(name, None)
    if isinstance(body.get("messages"), list):
        some = body["messages"][:3]
        body["messages"] = [{"role": "user", "content": str(message)[:20]} for message in some]
    if isinstance(body.get("prompt"), list):
        body["prompt"] = str(body["prompt"])
