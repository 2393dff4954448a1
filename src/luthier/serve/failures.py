"""Errors of the server, in the JSON that OpenAI's clients read. They never hold what a request said."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from luthier.errors import LuthierError
from luthier.serve.engine import Busy, EngineFailed, TooComplex, TooLarge

RETRY_AFTER = 2
"""Seconds after which a refused client may come again."""
NO_ROUTE = "there is no such route; the API is under /v1, and GET /openapi.json describes it"
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


@dataclass
class Refusal(Exception):
    """A request that is not answered, and why."""

    status: int
    message: str
    code: str | None = None
    param: str | None = None
    retry: bool = False
    """Whether the same request may be answered a little later."""

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """As OpenAI writes it."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {
            "error": {
                "message": printable(self.message),
                "type": kind,
                "param": self.param and printable(self.param),
                "code": self.code,
            }
        }

    def response(self) -> JSONResponse:
        """The whole answer."""
        headers = {"Retry-After": str(RETRY_AFTER)} if self.retry else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body(), self.status, headers)


def refusal_of(error: LuthierError) -> Refusal:
    """What a client is told of an error for people."""
    if isinstance(error, Busy):
        return Refusal(429, str(error), "queue_full", retry=True)
    if isinstance(error, TooLarge):
        return Refusal(413, str(error), "too_large")
    if isinstance(error, TooComplex):
        return Refusal(400, str(error), "schema_too_complex", "response_format.json_schema")
    if isinstance(error, EngineFailed):
        return Refusal(503, str(error), "engine_failed")
    return Refusal(400 if error.exit_code == 2 else 500, str(error))


def no_such_model(known: Iterable[str]) -> Refusal:
    """For a model that is not offered."""
    there = ", ".join(known)
    return Refusal(404, f"there is no such model here; there are: {there}", "model_not_found", "model")


def printable(text: str) -> str:
    """The text with a sign in place of what UTF-8 cannot write."""
    return text.encode("utf-8", "replace").decode("utf-8")


async def on_refusal(request: Request, error: Exception) -> JSONResponse:
    """Handles `Refusal`."""
    assert isinstance(error, Refusal)
    return error.response()


async def on_error(request: Request, error: Exception) -> JSONResponse:
    """Handles errors for people that nobody else took."""
    assert isinstance(error, LuthierError)
    return refusal_of(error).response()


async def on_http(request: Request, error: Exception) -> JSONResponse:
    """Handles unknown routes, wrong methods and bodies that cannot be read."""
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if error.status_code == 404:
        near = get_close_matches(request.url.path, request.app.state.routes, 1)
        message = f"there is no such route; did you mean {near[0]}?" if near else NO_ROUTE
    response = Refusal(error.status_code, message).response()
    response.headers.update(error.headers or {})  # such as the methods that there are
    return response


async def on_invalid(request: Request, error: Exception) -> JSONResponse:
    """Handles requests that do not fit the schema: names the first fault, without the value."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    where = [str(part) for part in fault["loc"] if part != "body"]
    param = ".".join(where) or None
    if fault["type"] == "json_invalid":
        return Refusal(400, "the body is not valid JSON", "invalid_json").response()
    if fault["type"] == "extra_forbidden":
        message = f"there is no field {where[-1]!r}" + _near(where[-1], request)
        return Refusal(400, message, "unknown_field", param).response()
    return Refusal(400, f"{param or 'the body'}: {fault['msg']}", "invalid_value", param).response()


def _near(name: str, request: Request) -> str:
    known = getattr(request.app.state, "fields", {}).get(request.url.path, ())
    near = get_close_matches(name, known, 1)
    return f"; did you mean {near[0]}?" if near else ""
