"""A server over tiny models in a thread of its own, and an engine that says what it is told to."""

import asyncio
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.models.inference import Loaded
from luthier.rollout.live import Order
from luthier.serve.engine import Busy, Engine, Load, Piece, Ticket
from luthier.serve.native import NativeEngine
from luthier.serve.shelf import Offered

CALLS_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools: {{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.content %}{{ '\n' + m.content }}{% endif %}"
    "{% for call in m.tool_calls or [] %}{{ '\n<tool_call>\n' }}"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}'
    "\n</tool_call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@dataclass
class Running:
    """A server that listens."""

    address: str
    server: Any
    gate: Any
    engine: Any
    thread: threading.Thread

    def close(self) -> None:
        """Ends it and waits."""
        self.server.close()
        self.thread.join(30)
        assert not self.thread.is_alive()

    def client(self, **options: Any) -> Any:
        """The official client, which asks once."""
        import openai

        return openai.OpenAI(
            base_url=f"{self.address}/v1", **{"api_key": "none", "max_retries": 0, "timeout": 60, **options}
        )


@contextmanager
def running(shelf: Mapping[str, Offered], engine: Any, **options: Any) -> Iterator[Running]:
    """Serves until the block ends. Options are those of `make_app`, and `patience`."""
    from luthier.serve.app import make_app
    from luthier.serve.run import Server, serve

    patience = options.pop("patience", 20.0)
    listening = threading.Event()
    engine.start()
    gate = make_app(shelf, engine, **options)
    server = Server(gate, host="127.0.0.1", port=0, patience=patience, ready=lambda address: listening.set())
    thread = threading.Thread(target=serve, args=(server, engine), daemon=True)
    thread.start()
    assert listening.wait(30)
    found = Running(server.address, server, gate, engine, thread)
    try:
        yield found
    finally:
        found.close()


def native(shelf: Mapping[str, Offered], **options: Any) -> NativeEngine:
    """Our own engine with room for a few answers."""
    room = {"most_rows": 16, "cache_tokens": 8192, "most_waiting": 64, **options}
    return NativeEngine({name: offered.loaded for name, offered in shelf.items()}, **room)


def tiny_shelf(folder: Path, template: str | None = None) -> dict[str, Offered]:
    """A tiny model called `tiny`, whose answers rarely end by themselves."""
    from luthier.data.chat import ChatTemplate
    from luthier.models.inference import load_for_inference
    from luthier.serve.shelf import load_shelf
    from tiny_runs import save_tiny_model

    if not folder.exists():
        save_tiny_model(folder)
    if template is None:
        return load_shelf(str(folder), {}, called="tiny", device="cpu", dtype="float32")
    loaded = load_for_inference(str(folder), device="cpu", dtype="float32")
    changed = Loaded(
        loaded.model, loaded.tokenizer, ChatTemplate(loaded.tokenizer, template), loaded.eos_token_ids
    )
    shelf = load_shelf(str(folder), {}, called="tiny", device="cpu", dtype="float32")
    one = shelf["tiny"]
    return {"tiny": Offered("tiny", changed, one.defaults, one.context)}


def llama(folder: Path, **options: Any) -> tuple[dict[str, Offered], Any]:
    """A tiny model called `tiny` as a GGUF of full precision in llama.cpp, and the engine with room for a few answers.

    The model that was written is in `folder`, beside the file.
    """
    from gguf_models import saved
    from luthier.export.gguf.write import write_gguf
    from luthier.serve.llama import opened
    from luthier.serve.opened import Asked

    if not folder.exists():
        saved("llama", folder, max_position_embeddings=512)
        write_gguf(folder, folder / "model.gguf", "f32")
    room = {"answers": 16, "cache_tokens": 8192, "queue": 64, **options}
    found = opened(Asked(str(folder / "model.gguf"), {}, "tiny", True, **room))
    return dict(found.shelf), found.engine


class Scripted:
    """An engine that answers every order with the same text, token by token, and remembers the orders.

    `held`: answers get their first token and then wait for `release`. It takes `room` orders.
    """

    def __init__(
        self, shelf: Mapping[str, Offered], text: str = "fine", *, held: bool = False, room: int = 99
    ):
        self._shelf, self.text, self.held, self.room = shelf, text, held, room
        self.orders: list[Order] = []
        self.open: dict[Ticket, list[Piece]] = {}
        self.dropped: list[Ticket] = []
        self.failure: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None: ...

    def stop(self) -> None: ...

    @property
    def load(self) -> Load:
        return Load(len(self.open), 0)

    def submit(self, order: Order) -> Ticket:
        self._loop = asyncio.get_running_loop()
        if len(self.open) >= self.room:
            raise Busy("no room")
        self.orders.append(order)
        ticket = Ticket(order.settings.num_samples)
        pieces = list(self._pieces(order))
        if self.held:
            ticket.put(pieces[:1])
            self.open[ticket] = pieces[1:]
        else:
            for piece in pieces:
                ticket.put([piece])
        return ticket

    def drop(self, ticket: Ticket) -> None:
        self.dropped.append(ticket)
        self.open.pop(ticket, None)

    def release(self) -> None:
        """Lets all answers go on to their end; to be called from another thread."""
        assert self._loop is not None
        for ticket, pieces in list(self.open.items()):
            self._loop.call_soon_threadsafe(ticket.put, pieces)
        self.open.clear()

    def _pieces(self, order: Order) -> Iterator[Piece]:
        loaded = self._shelf[order.model].loaded
        ids = loaded.tokenizer(self.text, add_special_tokens=False).input_ids
        texts = _parts(loaded.tokenizer, ids)
        for sample in range(order.settings.num_samples):
            for token, text in zip(ids, texts, strict=True):
                yield Piece(sample, token, -0.5, ((token, -0.5),) * min(order.top, 1), text, None)
            yield Piece(sample, loaded.eos_token_ids[0], -0.1, (), "", "eos")


def _parts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    whole = [tokenizer.decode(ids[:end]) for end in range(len(ids) + 1)]
    return [after[len(before) :] for before, after in itertools.pairwise(whole)]


_: type[Engine] = Scripted
