"""A conversation with a model: its history, what of it fits the context, and the answers as they come.

Nothing here loads, prints or reads keys, so that the terminal, a server and tests use the same session.
"""

import json
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from luthier.errors import DataError, LuthierError
from luthier.rollout.sampling import SamplingSettings

Message = dict[str, Any]


class Streamer(Protocol):
    """What answers: a `NativeGenerator`, or anything that streams text after a prompt."""

    @property
    def max_positions(self) -> int | None: ...

    def stream(self, prompt: Sequence[int], settings: SamplingSettings) -> Iterator[str]: ...


class Template(Protocol):
    """What turns messages into the prompt that the model saw in training: a `ChatTemplate`."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]: ...


class ChatSession:
    """A conversation under way. `history` holds its exchanges: a question and an answer, in turn.

    Exchanges that no longer fit the model's context stay in the history, but are not shown to the model.
    """

    def __init__(
        self,
        generator: Streamer,
        template: Template,
        settings: SamplingSettings,
        *,
        system: str | None = None,
    ):
        self._generator = generator
        self._template = template
        self._settings = settings
        self._num_asked = 0
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
        question = {"role": "user", "content": text}
        answer: list[str] = []
        finished = False
        try:
            for piece in self._generator.stream(self._fit(question), self._next_settings()):
                answer.append(piece)
                yield piece
            finished = True
        except LuthierError:
            answer.clear()
            raise
        finally:
            if finished or answer:
                self.history += [question, {"role": "assistant", "content": "".join(answer)}]

    def reset(self) -> None:
        """Forgets all exchanges; the system prompt stays."""
        self.history.clear()
        self.num_hidden = 0

    def undo(self) -> bool:
        """Takes the last exchange back. False if there is none."""
        if not self.history:
            return False
        del self.history[-2:]
        self.num_hidden = min(self.num_hidden, len(self.history) // 2)
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

    def _fit(self, question: Message) -> list[int]:
        """The prompt with as many of the newest exchanges as leave room for an answer."""
        ids = self._prompt(question)
        context = self._generator.max_positions
        if context is None:
            return ids
        # An answer may be allowed to be longer than the context; half of it is room enough then.
        room = min(self._settings.max_new_tokens, context // 2)
        while len(ids) + room > context and 2 * self.num_hidden < len(self.history):
            self.num_hidden += 1
            ids = self._prompt(question)
        if len(ids) >= context:
            raise DataError(
                f"the question takes {len(ids)} tokens with its system prompt, but the model's context holds "
                f"{context}; ask something shorter or shorten the system prompt"
            )
        return ids

    def _prompt(self, question: Message) -> list[int]:
        return self._template.prompt_ids([*self._system(), *self.history[2 * self.num_hidden :], question])

    def _system(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []
