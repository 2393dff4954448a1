"""The engine that hands orders to vLLM: ids go in, tokens come out. vLLM is no part of Luthier, and need not be there.

vLLM computes in processes of its own and makes its own schedule and draws. The ids of prompts, the text of answers and
what ends them are ours, as with every engine.
"""

import asyncio
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import aclosing, suppress
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from luthier.errors import ConfigError, LuthierError, ModelError, RunError
from luthier.memory import free_memory
from luthier.models.device import pick_device
from luthier.rollout.rows import Row
from luthier.rollout.sampling import row_seed
from luthier.rollout.text import TextReader
from luthier.serve.engine import Busy, EngineFailed, Load, Order, Piece, Ticket, TooLarge
from luthier.serve.opened import MEMORY_SHARE, Asked, Opened
from luthier.serve.shelf import Offered
from luthier.serve.vllm_models import Base, Served, base_of, served

NEEDED = "vllm"
USUAL_TOKENS = 1024
"""Room for each answer where nothing else is said: vLLM takes all of it at the start."""
MOST_LOGPROBS = 20
SLACK = 512
"""Tokens of room beyond what is asked for: vLLM rounds down to whole blocks."""


@dataclass(eq=False)
class _Taken:
    """An order with whom it is for."""

    order: Order
    ticket: Ticket
    loop: asyncio.AbstractEventLoop

    def tell(self, what: list[Piece] | LuthierError) -> None:
        """Puts it on the ticket; an event loop that has ended wants nothing."""
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.ticket.put, what)


class VllmEngine:
    """Answers with vLLM.

    Args:
        shelf: the models by name.
        adapters: the folders of those that are adapters, by name.
        settings: of vLLM's `AsyncEngineArgs`.
        most_rows: most answers at a time.
        most_waiting: most answers that wait.
    """

    def __init__(
        self,
        shelf: Mapping[str, Offered],
        adapters: Mapping[str, str],
        settings: Mapping[str, Any],
        *,
        most_rows: int,
        most_waiting: int,
    ):
        self._shelf, self._settings = shelf, dict(settings)
        self._adapters = {name: (place + 1, path) for place, (name, path) in enumerate(adapters.items())}
        self._most_rows, self._most_waiting = most_rows, most_waiting
        self._lock = threading.Lock()
        self._open: dict[Ticket, tuple[int, Future[None]]] = {}
        self._failure: str | None = None
        self._num_asked = 0
        self._began: Future[None] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._live()), name="luthier-vllm", daemon=True
        )
        self.ways: dict[str, str] = {}

    def start(self) -> None:
        """Starts vLLM and waits until it is ready. Raises ModelError if it cannot serve the model."""
        self._thread.start()
        try:
            self._began.result()
        except Exception as fault:  # whatever vLLM comes to
            self._thread.join()
            raise ModelError(f"vLLM cannot serve {self._settings['model']}: {_first_line(fault)}") from fault

    def submit(self, order: Order) -> Ticket:
        number = order.settings.num_samples
        if order.rule is not None:
            raise ConfigError("answers of vLLM cannot be held to a schema here; serve with --engine native")
        if number > self._most_rows:
            raise TooLarge(
                f"the request asks for {number} answers, but the server has room for {self._most_rows}"
            )
        if self._failure is not None:
            raise EngineFailed(self._failure)
        with self._lock:
            going = sum(count for count, _ in self._open.values())
            if going + number > self._most_rows + self._most_waiting:
                raise Busy(f"{going} answers are under way or wait already; come again later")
            ticket = Ticket(number)
            taken = _Taken(order, ticket, asyncio.get_running_loop())
            self._num_asked += 1
            work = asyncio.run_coroutine_threadsafe(self._answer(taken, self._num_asked), self._loop)
            self._open[ticket] = number, work
        work.add_done_callback(lambda _: self._forget(ticket))
        return ticket

    def drop(self, ticket: Ticket) -> None:
        with self._lock:
            found = self._open.get(ticket)
        if found is not None:
            found[1].cancel()

    def stop(self) -> None:
        self._failure = self._failure or "the server is shutting down"
        if self._thread.is_alive():
            with suppress(RuntimeError):  # it has just ended by itself
                self._loop.call_soon_threadsafe(self._ended.set)
            self._thread.join()

    @property
    def load(self) -> Load:
        with self._lock:
            numbers = [count for count, _ in self._open.values()]
        going = waiting = 0
        for number in numbers:  # vLLM takes them in their order
            if going + number <= self._most_rows and not waiting:
                going += number
            else:
                waiting += 1
        return Load(going, waiting)

    @property
    def failure(self) -> str | None:
        if self._failure is None and getattr(self._vllm, "errored", False):
            self._failure = "vLLM broke down; restart the server"  # while it had nothing to do
        return self._failure

    def _forget(self, ticket: Ticket) -> None:
        with self._lock:
            self._open.pop(ticket, None)

    async def _live(self) -> None:
        """The life of vLLM's own event loop."""
        self._loop, self._ended = asyncio.get_running_loop(), asyncio.Event()
        try:
            self._vllm = _started(self._settings)
        except BaseException as fault:
            self._began.set_exception(fault)
            return
        self.ways.update({name: _way(name in self._adapters) for name in self._shelf})
        self._began.set_result(None)
        await self._ended.wait()
        with self._lock:
            left = [work for _, work in self._open.values()]
        for work in left:
            work.cancel()
        await asyncio.sleep(0)
        self._vllm.shutdown()
        del self._vllm  # what it does when it is forgotten must not wait for the interpreter's end

    async def _answer(self, taken: _Taken, number: int) -> None:
        """All answers of an order."""
        samples = range(taken.order.settings.num_samples)
        try:
            async with asyncio.TaskGroup() as group:
                for sample in samples:
                    group.create_task(self._sample(taken, sample, f"{number}-{sample}"))
        except asyncio.CancelledError:
            taken.tell(EngineFailed(self._failure or "nobody waits for it"))
            raise
        except BaseExceptionGroup as faults:
            taken.tell(self._told(faults.exceptions[0]))

    async def _sample(self, taken: _Taken, sample: int, request: str) -> None:
        """One answer, until it ends or nobody waits for it, which tells vLLM."""
        order, words = taken.order, self._shelf[taken.order.model].loaded
        reader = TextReader(words.tokenizer, order.settings.stop)
        row, ends = Row(0, sample, order.limit, reader), frozenset(words.eos_token_ids)
        stream = self._vllm.generate(
            {"prompt_token_ids": list(order.prompt)},
            _sampling(order, sample, ends),
            request,
            lora_request=self._adapter(order.model),
        )
        async with aclosing(stream):
            async for output in stream:
                (found,) = output.outputs
                pieces: list[Piece] = []
                for token, likely in zip(found.token_ids, found.logprobs, strict=True):
                    if row.finish is None:
                        row.push(token, likely[token].logprob, ends)
                        pieces.append(_piece(row, likely, order.top))
                taken.tell(pieces)
                if row.finish is not None:
                    return
        raise RunError(f"vLLM broke the answer off after {len(row.ids)} tokens")

    def _adapter(self, name: str) -> Any:
        """vLLM's request for an adapter; None: it is the base model."""
        if name not in self._adapters:
            return None
        number, path = self._adapters[name]
        return _library(".lora.request").LoRARequest(name, number, path)

    def _told(self, fault: BaseException) -> LuthierError:
        """What a client is told of a fault; vLLM's own end is told of from then on."""
        if isinstance(fault, LuthierError):
            return fault
        if self._vllm.errored:
            self._failure = self._failure or f"vLLM broke down ({_first_line(fault)}); restart the server"
            return EngineFailed(self._failure)
        return RunError(f"vLLM refused the request: {_first_line(fault)}")


def opened(asked: Asked) -> Opened:
    """A run or a model, and adapters on it, in this engine.

    Raises:
        ConfigError: vLLM is not there, or would compute another model than the one that was trained.
        ModelError: there is no such model, or the run has not finished.
    """
    if find_spec(NEEDED) is None:
        raise ConfigError(
            "--engine vllm needs vLLM, which is not installed and not part of luthier: pip install vllm, or leave "
            "--engine out"
        )
    base = base_of(asked)
    tokens = asked.cache_tokens or _tokens_that_fit(base, asked.answers)
    models = served(asked, base, tokens)
    engine = VllmEngine(
        models.shelf,
        {name: str(path.absolute()) for name, path in models.adapters.items()},
        _settings(base, models, asked, tokens),
        most_rows=asked.answers,
        most_waiting=asked.queue,
    )
    return Opened(models.shelf, engine, tokens, engine.ways)


def _settings(base: Base, models: Served, asked: Asked, tokens: int) -> dict[str, Any]:
    """vLLM's own settings."""
    adapters = {
        "enable_lora": True,
        # On a CPU it counts "no adapter" as place -1, so the base's rows get what is in the last place: it stays empty.
        "max_loras": len(models.adapters) + 1,
        "max_lora_rank": models.rank,
    }
    return {
        "model": str(base.folder),
        "dtype": base.dtype,
        "skip_tokenizer_init": True,
        "max_model_len": next(iter(models.shelf.values())).context,
        "max_num_seqs": asked.answers,
        "kv_cache_memory_bytes": (tokens + SLACK) * base.bytes_of_token,
        "max_logprobs": MOST_LOGPROBS,
        "enable_prefix_caching": asked.share_prompts,
        "enforce_eager": not torch.cuda.is_available(),  # compiling for a CPU takes minutes at each start
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        **(adapters if models.adapters else {}),
    }


def _tokens_that_fit(base: Base, answers: int) -> int:
    """As many tokens as a share of the free memory holds, and no more than usual answers take."""
    fitting = int(free_memory(pick_device("auto")) * MEMORY_SHARE / base.bytes_of_token)
    return max(USUAL_TOKENS, min(fitting, answers * USUAL_TOKENS))


def _started(settings: Mapping[str, Any]) -> Any:
    """vLLM, which has loaded its model. It sends no statistics away and writes no more than errors."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    return _library(".v1.engine.async_llm").AsyncLLM.from_engine_args(_library().AsyncEngineArgs(**settings))


def _sampling(order: Order, sample: int, ends: frozenset[int]) -> Any:
    """vLLM's settings of one answer."""
    own = order.settings
    return _library().SamplingParams(
        temperature=own.temperature,
        top_k=own.top_k or 0,
        top_p=own.top_p,
        seed=row_seed(own, 0, sample) if own.temperature else None,
        max_tokens=order.limit,
        stop_token_ids=sorted(ends),
        ignore_eos=True,  # what ends an answer is what we say
        logprobs=order.top,
        detokenize=False,
        output_kind=_library(".sampling_params").RequestOutputKind.DELTA,
    )


def _piece(row: Row, likely: Mapping[int, Any], top: int) -> Piece:
    """The newest token of a row; `likely` has it and the likeliest ones."""
    best = sorted(likely.items(), key=lambda item: item[1].rank)[:top]
    likeliest = tuple((token, one.logprob) for token, one in best)
    return Piece(row.sample, row.ids[-1], row.logp[-1], likeliest, row.fresh, row.finish)


def _way(is_adapter: bool) -> str:
    beside = ", as an adapter beside its base" if is_adapter else ""
    return f"computed by vLLM {_library().__version__}{beside}"


def _library(part: str = "") -> Any:
    """The package, or a module of it: without types, as it need not be there."""
    return import_module(f"{NEEDED}{part}")


def _first_line(fault: BaseException) -> str:
    lines = str(fault).strip().splitlines() or [type(fault).__name__]
    return lines[0][:200]
