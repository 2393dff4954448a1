"""A conversation with a model: its history, what of it fits the context, and the answers as they come.

Nothing here loads, prints or reads keys, so that the terminal, a server and tests use the same session.
"""

import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from luthier.errors import DataError, LuthierError
from luthier.rollout.sampling import SamplingSettings
from luthier.serve.tool_calls import Call, CallFormat, CallReader

Message = dict[str, Any]


class Streamer(Protocol):
    """What answers: a `NativeGenerator`, or anything that streams text after a prompt."""

    @property
    def max_positions(self) -> int | None: ...

    def stream(self, prompt: Sequence[int], settings: SamplingSettings) -> Iterator[str]: ...


class Template(Protocol):
    """What turns messages into the prompt that the model saw in training: a `ChatTemplate`."""

    def prompt_ids(
        self,
        messages: Sequence[Message],
        tools: list[Any] | None = None,
        template_args: dict[str, Any] | None = None,
    ) -> list[int]: ...


@dataclass(frozen=True)
class Tools:
    """The tools that a model may ask for, and how its template writes that it does."""

    definitions: list[Any]
    format: CallFormat

    @property
    def names(self) -> list[str]:
        """What they are called."""
        return [tool.get("function", tool).get("name", "") for tool in self.definitions]

    def read(self, text: str) -> tuple[str, list[Call]]:
        """An answer's text without its calls, and the calls."""
        reader = CallReader(self.format, self.names)
        parts = [*reader.push(text), *reader.close()]
        return "".join(one for one in parts if isinstance(one, str)), [
            one for one in parts if isinstance(one, Call)
        ]


class ChatSession:
    """A conversation under way. `history` holds its exchanges: a question and an answer, in turn, and between
    them the calls of tools with their results.

    Exchanges that no longer fit the model's context stay in the history, but are not shown to the model.
    """

    def __init__(
        self,
        generator: Streamer,
        template: Template,
        settings: SamplingSettings,
        *,
        system: str | None = None,
        tools: Tools | None = None,
        template_args: dict[str, Any] | None = None,
    ):
        """`template_args`: variables for the template, such as a switch for thinking."""
        self._generator = generator
        self._template = template
        self._settings = settings
        self._tools = tools
        self._more: dict[str, Any] = {"tools": tools.definitions} if tools else {}
        if template_args:
            self._more["template_args"] = template_args
        self._num_asked = 0
        self.open_calls: list[Call] = []
        """Calls of the last answer that wait for their results."""
        self.system = system
        self.history: list[Message] = []
        self.num_hidden = 0
        """How many of the oldest exchanges the model no longer sees."""

    @property
    def messages(self) -> list[Message]:
        """The whole conversation, with the system prompt in front."""
        return [*self._system(), *self.history]

    def ask(self, text: str) -> Generator[str, None, None]:
        """The answer to a question, in pieces as it is generated.

        Where the reader stops early, by closing the iterator or with Ctrl-C, the history keeps the question
        and what there was of the answer. Without any of it, and after an error, the history is as before.

        Raises:
            DataError: the question alone is longer than the model's context.
        """
        self._drop_open()
        return self._stream([{"role": "user", "content": text}])

    def go_on(self, results: Sequence[str]) -> Generator[str, None, None]:
        """What the model says to the results of the tools it has called, one for each of `open_calls`, in pieces.

        Errors and interruptions as with `ask`; the results are then not in the history, and the calls still wait.
        """
        assert len(results) == len(self.open_calls), "each call has a result"
        pairs = zip(self.open_calls, results, strict=True)
        return self._stream([{"role": "tool", "name": call.name, "content": text} for call, text in pairs])

    def _stream(self, said: list[Message]) -> Generator[str, None, None]:
        answer: list[str] = []
        finished = False
        try:
            for piece in self._generator.stream(self._fit(said), self._next_settings()):
                answer.append(piece)
                yield piece
            finished = True
        except LuthierError:
            answer.clear()
            raise
        finally:
            if finished or answer:
                self.history += [*said, self._heard("".join(answer), finished)]

    def _heard(self, text: str, finished: bool) -> Message:
        """An answer as a message; its calls wait, if it is whole."""
        self.open_calls = []
        if self._tools is None or not finished:
            return {"role": "assistant", "content": text}
        plain, self.open_calls = self._tools.read(text)
        if not self.open_calls:
            return {"role": "assistant", "content": text}
        calls = [
            {"type": "function", "function": {"name": call.name, "arguments": _value(call.arguments)}}
            for call in self.open_calls
        ]
        return {"role": "assistant", "content": plain, "tool_calls": calls}

    def _drop_open(self) -> None:
        """Takes back the exchange whose calls got no results: no template can write it."""
        if self.open_calls:
            self.undo()

    def reset(self) -> None:
        """Forgets all exchanges; the system prompt stays."""
        self.history.clear()
        self.open_calls, self.num_hidden = [], 0

    @property
    def num_exchanges(self) -> int:
        """How many questions were answered."""
        return len(self._starts())

    def _starts(self) -> list[int]:
        """Where in the history each exchange begins."""
        return [place for place, message in enumerate(self.history) if message["role"] == "user"]

    def undo(self) -> bool:
        """Takes the last exchange back. False if there is none."""
        if not self.history:
            return False
        del self.history[self._starts()[-1] :]
        self.open_calls, self.num_hidden = [], min(self.num_hidden, self.num_exchanges)
        return True

    def save(self, path: Path) -> None:
        """Writes the conversation to a new file as one row of chat data, `{"messages": [...]}`.

        Raises:
            DataError: the file exists, or cannot be written.
        """
        try:
            with path.expanduser().open("x", encoding="utf-8") as file:
                file.write(json.dumps({"messages": self.messages}, ensure_ascii=False) + "\n")
        except FileExistsError as error:
            raise DataError(f"{path} exists and is left as it is; give another name") from error
        except OSError as error:
            raise DataError(f"{path} cannot be written ({error.strerror}); give another place") from error

    def _next_settings(self) -> SamplingSettings:
        """A question asked again may get another answer; a session held again gets the same ones."""
        self._num_asked += 1
        return replace(self._settings, seed=self._settings.seed + self._num_asked - 1)

    def _fit(self, said: list[Message]) -> list[int]:
        """The prompt with as many of the newest exchanges as leave room for an answer."""
        ids = self._prompt(said)
        context = self._generator.max_positions
        if context is None:
            return ids
        # An answer may be allowed to be longer than the context; half of it is room enough then.
        room = min(self._settings.max_new_tokens, context // 2)
        past = self.num_exchanges - (said[0]["role"] != "user")  # the exchange under way stays
        while len(ids) + room > context and self.num_hidden < past:
            self.num_hidden += 1
            ids = self._prompt(said)
        if len(ids) >= context:
            raise DataError(
                f"the question takes {len(ids)} tokens with its system prompt, but the model's context holds "
                f"{context}; ask something shorter or shorten the system prompt"
            )
        return ids

    def _prompt(self, said: list[Message]) -> list[int]:
        starts = [*self._starts(), len(self.history)]
        shown = self.history[starts[self.num_hidden] :]
        return self._template.prompt_ids([*self._system(), *shown, *said], **self._more)

    def _system(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []


def _value(text: str) -> Any:
    """What JSON says; a text that is none as it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text
