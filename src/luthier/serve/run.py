"""The server's life: it listens, and when it is asked to end it finishes what was begun, up to a limit."""

import errno
import logging
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn

from luthier.serve.engine import Engine
from luthier.serve.gate import Gate
from luthier.serve.place import no_place


class Server(uvicorn.Server):
    """uvicorn's server, which at the first signal sends new requests away and waits for the open ones.

    Args:
        gate: the app.
        host, port: where it listens; port 0 takes a free one.
        patience: seconds that open requests are given after the first signal; the second one ends it at once.
        ready: called once it listens, with the address.
    """

    def __init__(
        self,
        gate: Gate,
        *,
        host: str,
        port: int,
        patience: float,
        ready: Callable[[str], None] | None = None,
    ):
        super().__init__(
            uvicorn.Config(
                gate,  # type: ignore[arg-type]  # an ASGI app like any other
                host=host,
                port=port,
                log_level="warning",
                access_log=False,
                server_header=False,
                lifespan="off",
                ws="none",
                timeout_graceful_shutdown=1,
            )
        )
        self._gate, self._patience, self._ready = gate, patience, ready
        self._deadline: float | None = None

    def close(self) -> None:
        """As the first signal: no new requests, the open ones are finished."""
        self._gate.closing = True
        self._deadline = self._deadline or time.monotonic() + self._patience

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._deadline is None and sig in (signal.SIGINT, signal.SIGTERM):
            self.close()
        else:
            self.should_exit = self.force_exit = True

    async def on_tick(self, counter: int) -> bool:
        """Whether it is time to end; uvicorn asks ten times a second."""
        if self._ready is not None and self.servers:
            ready, self._ready = self._ready, None
            ready(self.address)
        if self._deadline is not None and (not self._gate.open or time.monotonic() > self._deadline):
            self.should_exit = True
        return await super().on_tick(counter)

    @property
    def address(self) -> str:
        """Where it listens."""
        sockets = [socket for server in self.servers for socket in server.sockets]
        host, port = sockets[0].getsockname()[:2]
        return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(server: Server, engine: Engine, place: socket.socket | None = None) -> None:
    """Runs the server until it is asked to end; then ends the engine, which was started.

    Args:
        place: where it listens (`take_place`), as the server's host and port say.

    Raises:
        ConfigError: another program has begun to listen there.
    """
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        server.run(sockets=None if place is None else [place])
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise no_place(server.config.host, server.config.port, error) from error
    finally:
        engine.stop()
