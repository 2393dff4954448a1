"""The server as one app: routes, errors in OpenAI's form, and the gate in front of them."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.exceptions import HTTPException

from luthier.errors import LuthierError
from luthier.models.embedder import Embedder
from luthier.serve.api import Api
from luthier.serve.catalogue import Catalogue
from luthier.serve.describe import (
    MODEL,
    MODELS,
    REPLY,
    TELLS,
    VECTORS,
    WRITES,
    answers,
    described,
    health_answers,
    number_answers,
)
from luthier.serve.embeddings import Embeddings
from luthier.serve.engine import Engine
from luthier.serve.failures import Refusal, on_error, on_http, on_invalid, on_refusal
from luthier.serve.gate import Doors, Gate
from luthier.serve.metrics import Metrics
from luthier.serve.prompts import Limits
from luthier.serve.requests import ChatRequest, CompletionRequest, EmbeddingRequest
from luthier.serve.shelf import Offered

CHAT, COMPLETIONS, EMBEDDINGS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
ROUTES = (CHAT, COMPLETIONS, EMBEDDINGS, "/v1/models", "/health", "/metrics")


def make_app(
    shelf: Mapping[str, Offered],
    engine: Engine,
    *,
    limits: Limits | None = None,
    doors: Doors | None = None,
    embedders: Mapping[str, Embedder] | None = None,
) -> Gate:
    """The app for an engine that was started, in ASGI."""
    metrics, embedders = Metrics(), embedders or {}
    silent = dict.fromkeys(embedders, "was trained to embed texts and cannot write; use /v1/embeddings")
    api = Api(shelf, engine, limits or Limits(), metrics, silent)
    catalogue, embeddings = Catalogue(shelf, embedders), Embeddings(embedders, list(shelf), metrics)
    app = FastAPI(title="luthier serve", docs_url=None, redoc_url=None)
    app.state.routes = ROUTES
    app.state.fields = {
        CHAT: _fields(ChatRequest),
        COMPLETIONS: _fields(CompletionRequest),
        EMBEDDINGS: _fields(EmbeddingRequest),
    }
    handlers: dict[Any, Any] = {
        Refusal: on_refusal,
        LuthierError: on_error,
        HTTPException: on_http,
        RequestValidationError: on_invalid,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)
    gate = Gate(app, doors or Doors(), metrics, ROUTES)

    async def health() -> Response:
        """Whether the server takes requests."""
        why = engine.failure or ("shutting down" if gate.closing else None)
        return JSONResponse({"status": "ok" if why is None else why}, 200 if why is None else 503)

    async def numbers() -> Response:
        """Numbers for Prometheus."""
        load = engine.load
        gauges = {
            "luthier_answers_going": load.answers,
            "luthier_orders_waiting": load.waiting,
            "luthier_requests_open": gate.open,
        }
        return PlainTextResponse(metrics.text(gauges), media_type="text/plain; version=0.0.4")

    writes, embeds = answers("the answer", REPLY, WRITES, streams=True), answers("vectors", VECTORS, WRITES)
    one = answers("this model", MODEL, (404, *TELLS))
    add = partial(app.add_api_route, response_model=None)
    add(CHAT, api.chat, methods=["POST"], responses=writes)
    add(COMPLETIONS, api.completion, methods=["POST"], responses=writes)
    add(EMBEDDINGS, embeddings.embed, methods=["POST"], responses=embeds)
    add("/v1/models", catalogue.models, methods=["GET"], responses=answers("all models", MODELS, TELLS))
    add("/v1/models/{name:path}", catalogue.model, methods=["GET"], responses=one)
    add("/health", health, methods=["GET"], responses=health_answers())
    text = {"response_class": PlainTextResponse, "responses": number_answers()}
    add("/metrics", numbers, methods=["GET"], **text)
    app.openapi = described(app, bool(gate.doors.keys))
    return gate


def _fields(request: Any) -> list[str]:
    return list(request.model_fields)
