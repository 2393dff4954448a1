"""What `luthier serve` does with its options: checks them, loads the models, and listens."""

import re
import sys
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.errors import ConfigError

if TYPE_CHECKING:
    from socket import socket

    from luthier.models.embedder import Embedder
    from luthier.serve.opened import Opened

NEEDED = ("fastapi", "uvicorn")
_LOCAL = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True)
class Wishes:
    """The options of the command."""

    name: str
    adapters: tuple[str, ...]
    engine: str | None
    called: str | None
    host: str
    port: int
    keys: tuple[str, ...]
    answers: int
    cache_tokens: int | None
    queue: int
    max_body: int
    max_prompt_tokens: int | None
    max_answer_tokens: int | None
    usual_answer_tokens: int
    patience: float
    share_prompts: bool
    offline: bool


def start(wishes: Wishes) -> None:
    """Serves until it is asked to end."""
    adapters = named_paths(wishes.adapters)
    refuse_missing()
    refuse_bad_keys(wishes.keys)
    from luthier.serve.place import take_place

    with take_place(wishes.host, wishes.port) as place:
        _serve(wishes, adapters, place)


def _serve(wishes: Wishes, adapters: dict[str, Path], place: "socket") -> None:
    """Loads the models and serves them."""
    note(f"Loading {wishes.name} ...")

    from luthier.serve.app import make_app
    from luthier.serve.gate import Doors
    from luthier.serve.prompts import Limits
    from luthier.serve.run import Server, serve
    from luthier.serve.shelf import other_bases

    embedders = _embedders(wishes)
    opened = _idle(wishes) if embedders else _opened(wishes, adapters)
    for line in other_bases(wishes.name, list(adapters.values())):
        note(f"warning: {line}")
    shelf, engine, tokens = opened.shelf, opened.engine, opened.tokens
    engine.start()
    usual = min(wishes.usual_answer_tokens, max(1, tokens // 2))
    limits = Limits(wishes.max_prompt_tokens, wishes.max_answer_tokens, usual)
    doors = Doors(wishes.keys, wishes.max_body, wishes.answers + wishes.queue)
    gate = make_app(shelf, engine, limits=limits, doors=doors, embedders=embedders)
    _tell(wishes, opened, usual)
    server = Server(
        gate,
        host=wishes.host,
        port=wishes.port,
        patience=wishes.patience,
        ready=lambda address: note(
            f"Serving {', '.join([*shelf, *embedders])} at {address}/v1 (Ctrl-C ends)"
        ),
    )
    serve(server, engine, place)


def _opened(wishes: Wishes, adapters: dict[str, Path]) -> "Opened":
    """The models, in the engine that was asked for or that is the right one for them."""
    from luthier.serve.opened import Asked, kind_for

    asked = Asked(
        wishes.name,
        adapters,
        wishes.called,
        wishes.offline,
        wishes.answers,
        wishes.cache_tokens,
        wishes.queue,
        wishes.share_prompts,
    )
    kind, why = (wishes.engine, "") if wishes.engine else kind_for(asked)
    if why:
        note(f"warning: {why}")
    return import_module(f"luthier.serve.{kind}").opened(asked)


def _idle(wishes: Wishes) -> "Opened":
    """No models that write."""
    from luthier.serve.native import LEAST_TOKENS, NativeEngine
    from luthier.serve.opened import Opened

    engine = NativeEngine({}, most_rows=wishes.answers, cache_tokens=LEAST_TOKENS, most_waiting=wishes.queue)
    return Opened({}, engine, LEAST_TOKENS, {})


def _tell(wishes: Wishes, opened: "Opened", usual: int) -> None:
    """What a person should know before the first request."""
    shelf = opened.shelf
    for name, offered in shelf.items():
        note(f"{name}: {opened.ways[name]}")
        if offered.loaded.template is None:
            note(f"{name} has no chat template, so it only answers /v1/completions")
    if shelf:
        note(
            f"room for {wishes.answers} answers and {opened.tokens:,} tokens at a time; {wishes.queue} requests wait"
        )
    if shelf and usual < wishes.usual_answer_tokens:
        note(
            f"answers have at most {usual:,} tokens where a request does not say, not "
            f"{wishes.usual_answer_tokens:,}: half of the room"
        )
    if wishes.host not in _LOCAL and not wishes.keys:
        note(
            f"warning: {wishes.host} can be reached by others and there is no key, so everybody may ask; "
            "set LUTHIER_API_KEY"
        )


def named_paths(given: tuple[str, ...]) -> dict[str, Path]:
    """Adapters by name. Raises ConfigError for what is not NAME=PATH, and for a name given twice."""
    faults: list[str] = []
    found: dict[str, Path] = {}
    for one in given:
        name, sign, path = one.partition("=")
        if not (sign and path and re.fullmatch(r"[\w.:/-]+", name)):
            faults.append(f"--adapter {one}: write it as NAME=PATH, the name without spaces")
        elif name in found:
            faults.append(f"--adapter {one}: the name {name} is given twice")
        elif not Path(path).is_dir():
            faults.append(f"--adapter {one}: there is no folder {path}")
        else:
            found[name] = Path(path)
    if faults:
        raise ConfigError(faults)
    return found


def refuse_missing() -> None:
    """Raises ConfigError if the packages of the extra are not there."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise ConfigError(f"luthier serve needs {' and '.join(missing)}; pip install 'luthier[serve]'")


def refuse_bad_keys(keys: tuple[str, ...]) -> None:
    """Raises ConfigError for keys that no header can hold."""
    if any(not key.isascii() or not key.isprintable() or not key.strip() for key in keys):
        raise ConfigError("an API key is empty or has other signs than printable ASCII; give another one")


def note(text: str) -> None:
    """Tells the person something."""
    print(text, file=sys.stderr, flush=True)


def _embedders(wishes: Wishes) -> "dict[str, Embedder]":
    """The model under its name, if it was trained to embed."""
    from luthier.models.embedder import embedding_folder, load_embedder
    from luthier.serve.shelf import offered_name

    if embedding_folder(wishes.name) is None:
        return {}
    if wishes.adapters:
        raise ConfigError(f"{wishes.name} was trained to embed texts, so no adapters can be served beside it")
    if wishes.engine not in (None, "native"):
        raise ConfigError(f"{wishes.name} was trained to embed texts, which only --engine native does")
    name = wishes.called or offered_name(wishes.name)
    return {name: load_embedder(wishes.name, offline=wishes.offline)}
