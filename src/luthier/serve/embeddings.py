"""`POST /v1/embeddings`: vectors of texts, from models that were trained to give them."""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch.nn.functional as F
from fastapi.responses import JSONResponse, Response
from torch import Tensor

from luthier.models.embedder import Embedder
from luthier.serve.failures import Refusal, no_such_model
from luthier.serve.metrics import Metrics
from luthier.serve.requests import EmbeddingRequest

MOST_TEXTS = 2048
"""Of one request, as at OpenAI."""


class Embeddings:
    """Answers requests for vectors, one after the other.

    Args:
        embedders: the models by name.
        others: models that there are but that write.
        metrics: where it is counted.
    """

    def __init__(self, embedders: Mapping[str, Embedder], others: Sequence[str], metrics: Metrics):
        self._embedders, self._others, self._metrics = embedders, others, metrics
        self._worker = ThreadPoolExecutor(1, "luthier-embeddings")

    async def embed(self, body: EmbeddingRequest) -> Response:
        """The vectors of one or more texts, each of length 1."""
        embedder = self._embedder(body.model)
        work = partial(_vectors, embedder, body)
        vectors, num_tokens = await asyncio.get_running_loop().run_in_executor(self._worker, work)
        self._metrics.count("luthier_prompt_tokens_total", num_tokens, model=body.model)
        data = [
            {"object": "embedding", "index": place, "embedding": _written(vector, body.encoding_format)}
            for place, vector in enumerate(vectors)
        ]
        usage = {"prompt_tokens": num_tokens, "total_tokens": num_tokens}
        return JSONResponse({"object": "list", "data": data, "model": body.model, "usage": usage})

    def _embedder(self, name: str) -> Embedder:
        found = self._embedders.get(name)
        if found is not None:
            return found
        if name in self._others:
            raise Refusal(
                400,
                f"the model {name} writes; it was not trained to embed texts. Serve a run of method embed",
                "wrong_model",
                "model",
            )
        raise no_such_model([*self._embedders, *self._others])


def _vectors(embedder: Embedder, body: EmbeddingRequest) -> tuple[Tensor, int]:
    """The vectors, and how many tokens went in."""
    texts = [_ids(embedder, one) for one in _given(body)]
    vectors = embedder.vectors(texts)
    if body.dimensions is not None:
        if body.dimensions > vectors.shape[1]:
            raise Refusal(
                400, f"the vectors have {vectors.shape[1]} numbers", "invalid_value", param="dimensions"
            )
        vectors = F.normalize(vectors[:, : body.dimensions], dim=-1)
    return vectors, sum(map(len, texts))


def _given(body: EmbeddingRequest) -> list[Any]:
    given: Any = body.input
    if isinstance(given, str) or (given and isinstance(given[0], int)):
        given = [given]
    if not 0 < len(given) <= MOST_TEXTS:
        raise Refusal(400, f"{len(given)} texts; give 1 to {MOST_TEXTS}", "invalid_value", "input")
    return given


def _ids(embedder: Embedder, text: str | list[int]) -> list[int]:
    ids = embedder.ids(text) if isinstance(text, str) else text
    known: Any = embedder.policy.model.get_input_embeddings()
    if not ids or any(not 0 <= number < known.weight.shape[0] for number in ids):
        raise Refusal(400, "a text is empty, or has a token that there is not", "invalid_value", "input")
    if embedder.context is not None and len(ids) > embedder.context:
        raise Refusal(
            400,
            f"a text has {len(ids)} tokens, but the model's context holds {embedder.context}",
            "context_length_exceeded",
            "input",
        )
    return ids


def _written(vector: Tensor, form: str | None) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
    return vector.tolist()
