"""`GET /v1/models`: the names that requests can call."""

import time
from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse, Response

from luthier.models.embedder import Embedder
from luthier.serve.failures import no_such_model
from luthier.serve.shelf import Offered


class Catalogue:
    """The models of a server: those that write, and those that embed."""

    def __init__(self, shelf: Mapping[str, Offered], embedders: Mapping[str, Embedder]):
        now = int(time.time())
        self._entries = {
            name: _entry(name, now, offered.base, offered.context, "chat") for name, offered in shelf.items()
        } | {name: _entry(name, now, None, one.context, "embedding") for name, one in embedders.items()}

    async def models(self) -> Response:
        """Which models there are."""
        return JSONResponse({"object": "list", "data": list(self._entries.values())})

    async def model(self, name: str) -> Response:
        """One of them."""
        if name not in self._entries:
            raise no_such_model(self._entries)
        return JSONResponse(self._entries[name])


def _entry(name: str, created: int, base: str | None, context: int | None, kind: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "luthier",
        "parent": base,
        "max_model_len": context,
        "kind": kind,
    }
