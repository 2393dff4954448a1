"""The routes of the server: from a request to an order, and from the engine's tokens to a reply."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from luthier.errors import LuthierError
from luthier.rollout.live import Order, Rule
from luthier.serve.engine import Engine, Piece, Ticket
from luthier.serve.failures import Refusal, no_such_model, refusal_of
from luthier.serve.grammar import Grammars
from luthier.serve.metrics import Metrics
from luthier.serve.prompts import Limits, chat_prompt, completion_prompts, order_for, tool_names
from luthier.serve.replies import (
    AnswerReader,
    Head,
    Portion,
    chat_choice,
    chat_delta,
    completion_choice,
    usage,
)
from luthier.serve.requests import ChatRequest, CompletionRequest, ResponseFormat, Sampled
from luthier.serve.shelf import Offered
from luthier.serve.tool_calls import CallFormat, CallReader, call_format

T = TypeVar("T")
Writer = Callable[[Portion], dict[str, Any]]


@dataclass(frozen=True)
class _Job:
    """A request on its way: its orders, taken by the engine, and who reads their answers."""

    head: Head
    orders: Sequence[Order]
    tickets: Sequence[Ticket]
    readers: Sequence[Sequence[AnswerReader]]
    """By order and sample."""
    request: Sampled
    whole: Writer
    piece: Writer
    began: float
    known: dict[int, int] = field(default_factory=dict)
    """By order, once it has begun: how many tokens of its prompt did not have to be read anew."""

    def usage(self, num_generated: int) -> dict[str, Any]:
        """The numbers of tokens."""
        return usage(self.orders, num_generated, sum(self.known.values()))


class Api:
    """Answers requests.

    Args:
        shelf: the models by name.
        engine: what generates, started.
        limits: what a request may ask for.
        metrics: where it is counted.
        others: models that there are but that do not write, and what they do instead.
    """

    def __init__(
        self,
        shelf: Mapping[str, Offered],
        engine: Engine,
        limits: Limits,
        metrics: Metrics,
        others: Mapping[str, str],
    ):
        self._shelf, self._engine, self._limits, self._metrics = shelf, engine, limits, metrics
        self._others = others
        # Templates and tokenizers remember things, so one thread uses them; the event loop does not wait.
        self._writer = ThreadPoolExecutor(1, "luthier-prompts")
        self._formats: dict[str, CallFormat | None] = {}
        self._grammars: dict[str, Grammars] = {}

    async def chat(self, request: Request, body: ChatRequest) -> Response:
        """The answer of a model to a conversation."""
        offered = self._offered(body.model)
        prompt = await self._aside(partial(chat_prompt, offered, body))
        most = body.max_completion_tokens or body.max_tokens
        rule = await self._aside(partial(self._rule, offered, body.response_format))
        order = order_for(offered, prompt, body, most, self._limits, _top(body))
        order = replace(order, rule=rule)
        names = tool_names(body)
        format = await self._aside(partial(self._format, offered)) if names else None
        logprobs, ids = bool(body.logprobs), body.return_token_ids

        def whole(answer: Any) -> dict[str, Any]:
            return chat_choice(answer, logprobs=logprobs, ids=ids)

        def piece(delta: Any) -> dict[str, Any]:
            return chat_delta(delta, logprobs=logprobs, ids=ids)

        job = self._start("chat.completion", offered, [order], body, format, names, (whole, piece))
        return await self._reply(request, job)

    async def completion(self, request: Request, body: CompletionRequest) -> Response:
        """How a model goes on after one or more texts."""
        offered = self._offered(body.model)
        prompts = await self._aside(partial(completion_prompts, offered, body, self._limits.prompts))
        top = body.logprobs or 0
        orders = [
            order_for(offered, prompt, body, body.max_tokens or 16, self._limits, top) for prompt in prompts
        ]

        def write(answer: Portion) -> dict[str, Any]:
            return completion_choice(answer, top=body.logprobs, ids=body.return_token_ids)

        job = self._start("text_completion", offered, orders, body, None, (), (write, write))
        return await self._reply(request, job)

    def _offered(self, name: str) -> Offered:
        found = self._shelf.get(name)
        if found is not None:
            return found
        if name in self._others:
            raise Refusal(400, f"the model {name} {self._others[name]}", "wrong_model", "model")
        raise no_such_model([*self._shelf, *self._others])

    def _format(self, offered: Offered) -> CallFormat | None:
        """How the model writes tool calls, found once."""
        template = offered.loaded.template
        if offered.name not in self._formats and template is not None:
            self._formats[offered.name] = call_format(template)
        return self._formats.get(offered.name)

    def _rule(self, offered: Offered, format: ResponseFormat | None) -> Callable[[], Rule] | None:
        """Makes what holds answers to a format; None: they are free."""
        if format is None:
            return None
        if offered.name not in self._grammars:
            self._grammars[offered.name] = Grammars(offered.loaded)
        return self._grammars[offered.name].rules(format)

    async def _aside(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._writer, work)

    def _start(
        self,
        kind: str,
        offered: Offered,
        orders: Sequence[Order],
        request: Sampled,
        format: CallFormat | None,
        names: Sequence[str],
        writers: tuple[Writer, Writer],
    ) -> _Job:
        """Hands the orders to the engine: all of them, or none."""
        tickets: list[Ticket] = []
        began = time.perf_counter()
        try:
            for order in orders:
                tickets.append(self._engine.submit(order))
        except LuthierError as error:
            self._drop(tickets)
            refusal = refusal_of(error)
            self._metrics.count("luthier_refused_total", reason=refusal.code or str(refusal.status))
            raise refusal from error
        self._metrics.count(
            "luthier_prompt_tokens_total", sum(len(order.prompt) for order in orders), model=offered.name
        )
        eos, num = frozenset(offered.loaded.eos_token_ids), request.n or 1
        readers = [
            [
                AnswerReader(
                    place * num + sample,
                    sample,
                    offered,
                    format and CallReader(format, names),
                    eos,
                    logprobs=request.wants_logprobs,
                )
                for sample in range(num)
            ]
            for place in range(len(orders))
        ]
        return _Job(Head.new(kind, offered.name), orders, tickets, readers, request, *writers, began)

    def _drop(self, tickets: Sequence[Ticket]) -> None:
        for ticket in tickets:
            self._engine.drop(ticket)

    async def _deltas(self, job: _Job) -> AsyncIterator[Portion]:
        """What the tokens of all orders add, as they come. Closing it drops what is not done."""
        lines: asyncio.Queue[Portion | BaseException | None] = asyncio.Queue()

        async def read(place: int, ticket: Ticket, readers: Sequence[AnswerReader]) -> None:
            try:
                async for piece in ticket.pieces():
                    lines.put_nowait(readers[piece.sample].push(piece))
                    self._count(job, place, piece)
                lines.put_nowait(None)
            except Exception as error:
                lines.put_nowait(error)

        pairs = zip(job.tickets, job.readers, strict=True)
        tasks = [asyncio.ensure_future(read(place, *pair)) for place, pair in enumerate(pairs)]
        left, first = len(tasks), True
        try:
            while left:
                line = await lines.get()
                if isinstance(line, BaseException):
                    raise line
                if line is None:
                    left -= 1
                    continue
                if first:
                    seconds = time.perf_counter() - job.began
                    self._metrics.took("luthier_first_token_seconds", seconds, model=job.head.model)
                    first = False
                yield line
        finally:
            for task in tasks:
                task.cancel()
            if left:
                self._drop(job.tickets)

    def _count(self, job: _Job, place: int, piece: Piece) -> None:
        self._metrics.count("luthier_generated_tokens_total", model=job.head.model)
        if place not in job.known:
            job.known[place] = piece.known
            self._metrics.count("luthier_known_prompt_tokens_total", piece.known, model=job.head.model)

    async def _reply(self, request: Request, job: _Job) -> Response:
        if job.request.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            return StreamingResponse(self._events(job), media_type="text/event-stream", headers=headers)
        try:
            return JSONResponse(await _while_there(request, self._whole(job)))
        except LuthierError as error:
            raise refusal_of(error) from error
        except _Left:
            self._metrics.count("luthier_cancelled_total")
            return Response(status_code=499)

    async def _whole(self, job: _Job) -> dict[str, Any]:
        answers = {reader.index: Portion(reader.index) for own in job.readers for reader in own}
        deltas = self._deltas(job)
        try:
            async for delta in deltas:
                answers[delta.index].add(delta)
        finally:
            await deltas.aclose()  # type: ignore[attr-defined]  # it is a generator
        generated = sum(len(answer.ids) for answer in answers.values())
        more = {"prompt_token_ids": list(job.orders[0].prompt)} if job.request.return_token_ids else {}
        choices = [job.whole(answer) for answer in answers.values()]
        return job.head.reply(choices=choices, usage=job.usage(generated), **more)

    async def _events(self, job: _Job) -> AsyncIterator[bytes]:
        """A streamed reply: a line for whatever a token adds that can be told."""
        ids, tells = job.request.return_token_ids, job.request.tells_usage
        rest = {"usage": None} if tells else {}
        generated, finished = 0, False
        deltas = self._deltas(job)
        try:
            if job.head.kind == "chat.completion":
                for own in job.readers:
                    for reader in own:
                        yield _event(job.head.chunk(choices=[_opening(reader.index)], **rest))
            async for delta in deltas:
                generated += len(delta.ids)
                if ids or not delta.is_empty:
                    yield _event(job.head.chunk(choices=[job.piece(delta)], **rest))
            finished = True
            if tells:
                yield _event(job.head.chunk(choices=[], usage=job.usage(generated)))
            yield b"data: [DONE]\n\n"
        except LuthierError as error:
            finished = True
            yield _event(refusal_of(error).body())
        finally:
            await deltas.aclose()  # type: ignore[attr-defined]  # it is a generator
            if not finished:
                self._drop(job.tickets)
                self._metrics.count("luthier_cancelled_total")


class _Left(Exception):
    """The client has gone."""


async def _while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives; it is cancelled when the client leaves, which raises `_Left`."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_leaving(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _Left
        return task.result()
    finally:
        for one in (task, watcher):
            one.cancel()
        if not task.done():
            with suppress(asyncio.CancelledError):
                await task


async def _leaving(request: Request) -> None:
    """Returns when the client leaves."""
    receive: Callable[[], Awaitable[Any]] = request.receive
    while (await receive())["type"] != "http.disconnect":
        pass


def _event(what: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(what, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


def _opening(index: int) -> dict[str, Any]:
    """The first piece of a chat's answer."""
    return {
        "index": index,
        "delta": {"role": "assistant", "content": ""},
        "finish_reason": None,
        "logprobs": None,
    }


def _top(request: ChatRequest) -> int:
    return (request.top_logprobs or 0) if request.logprobs else 0
