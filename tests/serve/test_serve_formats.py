"""Answers that are held to JSON and to a schema: from a random model that knows nothing of either."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("llguidance")
openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx")

from luthier.serve.shelf import Offered  # noqa: E402
from serve_parts import Running, native, running, tiny_shelf  # noqa: E402

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "green", "blue"]},
        "number": {"type": "integer", "minimum": 0, "maximum": 99},
        "flags": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["colour", "number", "flags"],
    "additionalProperties": False,
}
ASK: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "say"}], "max_tokens": 200}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Offered]:
    return tiny_shelf(tmp_path_factory.mktemp("formats") / "model")


@pytest.fixture(scope="module")
def server(shelf: dict[str, Offered]) -> Iterator[Running]:
    with running(shelf, native(shelf)) as found:
        yield found


def schema(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": of}}


def fits(text: str) -> bool:
    found = json.loads(text)
    return (
        set(found) == {"colour", "number", "flags"}
        and found["colour"] in ("red", "green", "blue")
        and isinstance(found["number"], int)
        and 0 <= found["number"] <= 99
        and len(found["flags"]) <= 3
        and all(isinstance(flag, bool) for flag in found["flags"])
    )


@pytest.mark.parametrize("temperature", [0.0, 1.0, 2.0])
def test_answers_fit_the_schema(server: Running, temperature: float) -> None:
    for seed in range(4):
        reply = server.client().chat.completions.create(
            **ASK, temperature=temperature, seed=seed, response_format=schema(SCHEMA)
        )
        assert reply.choices[0].finish_reason == "stop" and fits(reply.choices[0].message.content)


def test_free_and_held_answers_side_by_side(server: Running) -> None:
    client = server.client()
    free = client.chat.completions.create(**{**ASK, "max_tokens": 30}, temperature=0)
    held = client.chat.completions.create(**ASK, n=3, temperature=1, seed=1, response_format=schema(SCHEMA))
    assert all(fits(choice.message.content) for choice in held.choices)
    again = client.chat.completions.create(
        **{**ASK, "max_tokens": 30}, temperature=0, response_format={"type": "text"}
    )
    assert again.choices[0].message.content == free.choices[0].message.content


def test_any_object(server: Running) -> None:
    ended = 0
    for seed in range(6):
        reply = server.client().chat.completions.create(
            **ASK, temperature=1.0, seed=seed, response_format={"type": "json_object"}
        )
        if reply.choices[0].finish_reason == "stop":
            ended += 1
            assert isinstance(json.loads(reply.choices[0].message.content), dict)
    assert ended


@pytest.mark.parametrize(
    "wrong",
    [{"type": "objekt"}, {"$ref": "#/nothing"}, {"type": "string", "pattern": "("}, {"not": {}, "if": 3}],
)
def test_schemas_that_cannot_be_held_to_are_400(server: Running, wrong: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        server.client().chat.completions.create(**ASK, response_format=schema(wrong))
    assert caught.value.code == "invalid_schema"
    assert server.client().chat.completions.create(**{**ASK, "max_tokens": 2}).choices


TOO_MUCH: dict[str, dict[str, Any]] = {
    "as the tokens are looked through": {"type": "string", "pattern": "^(.*[a-m].{200}){4}$"},
    "as a token is taken": {
        "type": "array",
        "minItems": 1,
        "items": {
            "anyOf": [
                {
                    "type": "object",
                    "properties": {f"k{n}": {"type": "string"} for n in range(first, first + 40)},
                }
                for first in range(60)
            ]
        },
    },
}


@pytest.mark.parametrize("which", TOO_MUCH)
def test_a_schema_that_proves_too_complex_under_way_is_the_requests_fault(
    server: Running, which: str
) -> None:
    asked = {
        **ASK,
        "response_format": schema(TOO_MUCH[which]),
        "temperature": 1.0,
        "seed": 3,
        "max_tokens": 400,
    }
    with pytest.raises(openai.BadRequestError, match="too complex to be followed") as caught:
        server.client().chat.completions.create(**asked)
    assert (caught.value.code, caught.value.type) == ("schema_too_complex", "invalid_request_error")
    assert "Tokens:" not in str(caught.value)  # nothing of what was said
    with pytest.raises(openai.APIError, match="too complex to be followed") as told:
        list(server.client().chat.completions.create(**asked, stream=True))
    assert told.value.code == "schema_too_complex"
    assert server.client().chat.completions.create(**{**ASK, "max_tokens": 2}).choices


def test_a_schema_as_deep_as_a_body_can_be_is_no_fault_of_the_server(server: Running) -> None:
    for depth in (50, 300, 900, 5000):
        text = '{"type":"array","items":' * depth + "{}" + "}" * depth
        body = json.dumps({**ASK, "max_tokens": 2, "response_format": schema({})})
        found = httpx.post(
            f"{server.address}/v1/chat/completions", content=body.replace('"schema": {}', f'"schema": {text}')
        )
        assert found.status_code in (200, 400), found.text


def test_without_the_package_it_is_said(server: Running, monkeypatch) -> None:
    from luthier.serve import grammar

    monkeypatch.setattr(grammar, "NEEDED", "no_such_package")
    with pytest.raises(openai.BadRequestError, match="lacks the package llguidance"):
        server.client().chat.completions.create(**ASK, response_format={"type": "json_object"})
