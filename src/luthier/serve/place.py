"""Where a server listens, taken before anything is loaded."""

import errno
import socket

from luthier.errors import ConfigError


def take_place(host: str, port: int) -> socket.socket:
    """Takes the place where a server is to listen, so that it is known to be free before a model is loaded.

    Raises:
        ConfigError: another program has it, it is not this machine's, or only the administrator may take it.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"--host {host}: there is no such address; 127.0.0.1 is this machine alone"
        ) from error
    family, kind, protocol, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    taken = socket.socket(family, kind, protocol)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise no_place(host, port, error) from error
    return taken


def no_place(host: str, port: int, error: OSError) -> ConfigError:
    """Says why nobody can listen there, and what to do."""
    if error.errno == errno.EADDRINUSE:
        why = f"--port {port} is taken by another program; end that one, or give another port (0 takes a free one)"
    elif error.errno == errno.EACCES:
        why = f"--port {port} is only for the administrator; give one from 1024 up"
    elif error.errno == errno.EADDRNOTAVAIL:
        why = f"--host {host} is no address of this machine; 127.0.0.1 is this machine alone, 0.0.0.0 all of its own"
    else:
        why = f"--host {host} --port {port} cannot be listened on: {error.strerror}"
    return ConfigError(why)
