"""What every request passes first: keys, the size of its body, how many are open, and whether the server shuts down.

A layer of its own around the app, so that nothing is read, parsed or kept of a request that is refused.
"""

import asyncio
import hashlib
import hmac
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from luthier.serve.failures import Refusal
from luthier.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_SECONDS = 30.0
"""How long a body may take to arrive."""
OPEN_PATHS = ("/health",)
"""Answered without a key, and while the server shuts down."""
log = logging.getLogger("luthier.serve")


@dataclass(frozen=True)
class Doors:
    """What may come in."""

    keys: tuple[str, ...] = ()
    """Keys of clients; without any everybody may ask."""
    body_bytes: int = 4 << 20
    """Largest body."""
    open_requests: int = 512
    """Most requests at a time."""


class Gate:
    """The app behind its doors."""

    def __init__(self, app: App, doors: Doors, metrics: Metrics, routes: Sequence[str]):
        self._app, self._metrics, self._routes = app, metrics, frozenset(routes)
        self.doors = doors
        """What may come in."""
        self._keys = [_digest(key) for key in doors.keys]
        self.open = 0
        """Requests that are not answered yet."""
        self.closing = False
        """Whether new requests are sent away because the server shuts down."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        began, status = time.perf_counter(), 499

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        route = scope["path"] if scope["path"] in self._routes else "other"
        free = scope["path"] in OPEN_PATHS
        counted = False
        try:
            self._admit(scope, free)
            self.open, counted = self.open + 1, True
            body = await asyncio.wait_for(_body(scope, receive, self.doors.body_bytes), BODY_SECONDS)
            await self._app(scope, _replayed(body, receive), watched)
        except TimeoutError:
            await Refusal(408, "the body took too long to arrive").response()(scope, receive, watched)
        except Refusal as refusal:
            self._metrics.count("luthier_refused_total", reason=refusal.code or str(refusal.status))
            await refusal.response()(scope, receive, watched)
        except _Gone:
            pass
        except Exception as fault:
            # Without its text, which may hold what the request said.
            frames = "".join(traceback.format_tb(fault.__traceback__))
            log.error("%s while answering %s\n%s", type(fault).__name__, route, frames)
            if status == 499:
                await Refusal(500, "the server failed; its log says where").response()(
                    scope, receive, watched
                )
        finally:
            self.open -= counted
            self._metrics.count("luthier_requests_total", route=route, status=str(status))
            self._metrics.took("luthier_request_seconds", time.perf_counter() - began, route=route)

    def _admit(self, scope: Scope, free: bool) -> None:
        """Raises Refusal for what may not come in."""
        if free:
            return
        headers = {key.lower(): value for key, value in scope["headers"]}
        if self._keys and not self._known(headers.get(b"authorization", b"")):
            raise Refusal(401, "no valid API key; send it as `Authorization: Bearer KEY`", "invalid_api_key")
        if self.closing:
            raise Refusal(503, "the server is shutting down", "shutting_down", retry=True)
        if self.open >= self.doors.open_requests:
            raise Refusal(429, f"{self.open} requests are open already", "too_many_requests", retry=True)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > self.doors.body_bytes:
            raise self.too_large(self.doors.body_bytes)

    def _known(self, header: bytes) -> bool:
        """Whether one of the keys was sent. Takes as long for a wrong key as for a right one."""
        kind, _, key = header.partition(b" ")
        found = hashlib.sha256(key.strip()).digest()
        known = [hmac.compare_digest(found, own) for own in self._keys]
        return kind.lower() == b"bearer" and any(known)

    @staticmethod
    def too_large(most: int) -> Refusal:
        """For a body of more bytes than are taken."""
        return Refusal(413, f"the body is larger than {most} bytes", "body_too_large")


class _Gone(Exception):
    """The client left before its request was whole."""


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


async def _body(scope: Scope, receive: Receive, most: int) -> bytes:
    """The whole body, of at most so many bytes."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > most:
            raise Gate.too_large(most)
        if not message.get("more_body"):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Hands the body out once; then whatever comes, which is the client's leaving."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
