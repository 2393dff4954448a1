"""What the server says of itself in `/openapi.json`: which statuses each route can answer with, and their form.

Requests are described by their own classes (requests.py); this is the other direction. Shapes of replies are told as
far as clients can rely on them: fields may be added.
"""

from collections.abc import Callable, Iterable
from typing import Any

from fastapi import FastAPI

WRITES = (400, 401, 404, 408, 413, 429, 500, 503)
"""Refusals of routes that take a body."""
TELLS = (401, 408, 413, 429, 500, 503)
"""Of those that only tell something, which may be sent a body all the same."""
_MEANS = {
    400: "the request is wrong; `param` names the field where there is one",
    401: "no valid API key",
    404: "there is no such model",
    408: "the body took too long to arrive",
    413: "the body, the prompt or the answers asked for are larger than this server takes",
    429: "too many requests wait already; come again after `Retry-After` seconds",
    500: "the server failed; its log says where",
    503: "the server shuts down, or its engine broke down",
}
_TEXT, _NUMBER = {"type": "string"}, {"type": "integer"}
_OBJECTS = {"type": "array", "items": {"type": "object"}}


def _object(**fields: Any) -> dict[str, Any]:
    return {"type": "object", "required": list(fields), "properties": fields}


_MAYBE = {"type": ["string", "null"]}
ERROR = _object(error=_object(message=_TEXT, type=_TEXT, param=_MAYBE, code=_MAYBE))
_USAGE = _object(prompt_tokens=_NUMBER, total_tokens=_NUMBER)
REPLY = _object(id=_TEXT, object=_TEXT, created=_NUMBER, model=_TEXT, choices=_OBJECTS, usage=_USAGE)
VECTORS = _object(object=_TEXT, data=_OBJECTS, model=_TEXT, usage=_USAGE)
MODEL = _object(id=_TEXT, object=_TEXT, created=_NUMBER, owned_by=_TEXT)
MODELS = _object(object=_TEXT, data={"type": "array", "items": MODEL})
HEALTH = _object(status=_TEXT)


def answers(
    said: str, schema: dict[str, Any], refused: Iterable[int], *, streams: bool = False
) -> dict[int | str, dict[str, Any]]:
    """All statuses of a route: 200 with this meaning and form, and these refusals."""
    content: dict[str, Any] = {"application/json": {"schema": schema}}
    if streams:
        content["text/event-stream"] = {}
    return {200: {"description": said, "content": content}, **_refusals(refused)}


def health_answers() -> dict[int | str, dict[str, Any]]:
    """Of `/health`, which tells in one form whether all is well or not."""
    content = {"application/json": {"schema": HEALTH}}
    well = {"description": "requests are taken", "content": content}
    return {200: well, 503: {"description": _MEANS[503], "content": content}, **_refusals((408, 413, 500))}


def number_answers() -> dict[int | str, dict[str, Any]]:
    """Of `/metrics`, which is text."""
    content = {"text/plain": {"schema": _TEXT}}
    return {200: {"description": "numbers for Prometheus", "content": content}, **_refusals(TELLS)}


def _refusals(statuses: Iterable[int]) -> dict[int | str, dict[str, Any]]:
    content = {"application/json": {"schema": ERROR}}
    return {status: {"description": _MEANS[status], "content": content} for status in statuses}


def described(app: FastAPI, keys: bool) -> Callable[[], dict[str, Any]]:
    """Makes the description. FastAPI would add a status 422, which this server never answers with.

    Args:
        app: with all its routes.
        keys: whether clients must send one.
    """
    usual = app.openapi

    def describe() -> dict[str, Any]:
        if app.openapi_schema is not None:
            return app.openapi_schema
        found = usual()
        for operations in found["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        parts = found.setdefault("components", {})
        for unused in ("HTTPValidationError", "ValidationError"):
            parts.get("schemas", {}).pop(unused, None)
        if keys:
            parts["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            found["security"] = [{"key": []}]
        return found

    return describe
