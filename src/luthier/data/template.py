"""A chat template as a program: rendered as `apply_chat_template` does it, and watched while it runs.

Chat templates are Jinja. We build the environment that transformers builds, and a second version of the program
that tells which text it wrote for which message (`marking.py`).
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta

from luthier.data.conversation import Message
from luthier.data.marking import RECORDER, Captured, Marked, Recorder, watch
from luthier.data.sandbox import chat_environment
from luthier.errors import DataError, RowRefused


class TemplateProgram:
    """A compiled chat template that can also say where each message went.

    `now` is what the clock says that the template can read.

    Raises:
        DataError: if the source is not valid Jinja.
    """

    def __init__(self, source: str, now: datetime):
        self.source = source
        environment = chat_environment(now)
        try:
            self._plain = environment.from_string(source)
            tree = environment.parse(source)
        except jinja2.TemplateSyntaxError as fault:
            raise DataError(
                f"the chat template is not valid Jinja: {fault.message} (line {fault.lineno}); "
                "correct it or give another file in data.template"
            ) from fault
        self.variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
        """Names that the template reads and does not set itself."""
        watch(tree)
        self._watched = environment.from_string(tree)
        self._needs_marks = False

    def render(self, messages: Sequence[Message], variables: dict[str, Any]) -> str:
        """The text of the conversation, as `apply_chat_template(tokenize=False)` writes it.

        Raises:
            RowRefused: if the template fails or refuses, with its own message.
        """
        return _run(self._plain, {**variables, "messages": list(messages)})

    def render_marked(self, messages: Sequence[Message], variables: dict[str, Any]) -> Marked:
        """The text of the conversation with the region of each message.

        Raises:
            RowRefused: as `render`; and if the marks, where they are needed, cannot be trusted.
        """
        values = {**variables, "messages": list(messages)}
        if not self._needs_marks:
            try:
                return self._measured(messages, values)
            except Captured:
                self._needs_marks = True
        recorder = Recorder(messages, marks=True)
        marked = recorder.parsed(_run(self._watched, {**values, RECORDER: recorder}))
        if marked.text != _run(self._plain, values):
            raise RowRefused(
                "the template changes its output with the text around a message, so it cannot be marked"
            )
        return marked

    def _measured(self, messages: Sequence[Message], values: dict[str, Any]) -> Marked:
        recorder = Recorder(messages, marks=False)
        pieces: list[str] = []
        try:
            context = self._watched.new_context({**values, RECORDER: recorder})
            for piece in self._watched.root_render_func(context):
                recorder.length += len(piece)
                pieces.append(piece)
        except Captured:
            raise
        except Exception as fault:
            raise _refusal(fault) from fault
        return recorder.measured("".join(pieces))


def _run(template: jinja2.Template, variables: dict[str, Any]) -> str:
    try:
        return template.render(**variables)
    except Exception as fault:
        raise _refusal(fault) from fault


def _refusal(fault: Exception) -> RowRefused:
    """A template is somebody else's program: whatever it raises is about this row."""
    reason = getattr(fault, "message", None) or f"{type(fault).__name__}: {fault}"
    return RowRefused(f"the chat template refuses the conversation: {reason}")
