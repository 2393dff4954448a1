"""The chat in a terminal or a pipe: reads questions and commands, prints answers while they come.

Answers go to standard output; everything else goes to standard error, so that a pipe gets answers only.
"""

import sys
import unicodedata
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TextIO

from luthier.errors import DataError, LuthierError
from luthier.serve.chat import ChatSession
from luthier.serve.side_by_side import SideBySide
from luthier.serve.thinking import ThoughtReader
from luthier.serve.tool_calls import Call

Talk = ChatSession | SideBySide

HELP = """\
/reset        forget the conversation, keep the system prompt
/system TEXT  set the system prompt; without TEXT: take it away
/undo         take back the last question and its answer
/save FILE    write the conversation to a new file, as a row of chat data
/think        print what the model thought last; /think show or /think fold: always, or only when asked
/exit         leave (so does Ctrl-D)
/help         this list
A question that begins with a slash: write the slash twice. Ctrl-C stops an answer."""


class Terminal:
    """Two streams to write to, and whether somebody sits in front of them."""

    def __init__(
        self,
        out: TextIO | None = None,
        notes: TextIO | None = None,
        interactive: bool | None = None,
        *,
        fold: bool = True,
        thinks_at_once: bool = False,
    ):
        """`fold`: keep what a model thinks away from its answers. `thinks_at_once`: its prompt opens the thoughts."""
        self.out = out or sys.stdout
        self.notes = notes or sys.stderr
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty() if interactive is None else interactive
        self.fold, self.thinks_at_once = fold, thinks_at_once
        self.thoughts = ""
        """What the model thought before its last answer."""

    def note(self, text: str) -> None:
        """Tells the person something that is not part of an answer."""
        print(text, file=self.notes, flush=True)

    def show(self, text: str) -> None:
        """Prints a piece of an answer at once."""
        # On a screen, control characters from a model could move the cursor or worse.
        self.out.write("".join(filter(_printable, text)) if self.interactive else text)
        self.out.flush()

    def lines(self) -> Iterator[str]:
        """What is typed or piped in, until the end of input (Ctrl-D)."""
        while True:
            try:
                line = self.line("> ")
            except KeyboardInterrupt:
                if not self.interactive:
                    raise
                self.note("\n(Ctrl-D or /exit leaves)")
                continue
            if line is None:
                return
            yield line

    def line(self, prompt: str) -> str | None:
        """One line that is typed or piped in; None at the end of input."""
        if not self.interactive:
            line = sys.stdin.readline()
            return _readable(line.rstrip("\r\n")) if line else None
        _enable_line_editing()
        try:
            return _readable(input(prompt))
        except EOFError:
            self.note("")
            return None


def _readable(text: str) -> str:
    """The text with a sign in place of bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def converse(session: Talk, terminal: Terminal) -> None:
    """Answers questions and obeys commands until the input ends or `/exit`. Errors do not end it."""
    if terminal.interactive:
        terminal.note("Ask something. /help lists the commands.")
    for line in terminal.lines():
        text = line.strip()
        if not text:
            continue
        try:
            if not text.startswith("/") or text.startswith("//"):
                answer(session, terminal, text.removeprefix("/"))
            elif not _obey(session, terminal, text):
                return
        except LuthierError as error:
            terminal.note(f"error: {error}")


def answer(session: Talk, terminal: Terminal, text: str) -> None:
    """Prints the answer to a question as it comes, and asks for the results of tools that the model calls."""
    if isinstance(session, SideBySide):
        for label, one in session.sessions.items():
            terminal.show(f"[{label}]\n")
            answer(one, terminal, text)
        return
    hidden = session.num_hidden
    pieces = session.ask(text)
    while True:
        _print(pieces, terminal)
        results = _results(session.open_calls, terminal)
        if not results:
            break
        pieces = session.go_on(results)
    if session.open_calls:
        session.undo()
        terminal.note("(the calls have no results, so the question is taken back)")
    if session.num_hidden > hidden:
        terminal.note(
            "(the conversation outgrew the model's context: it no longer sees the oldest "
            f"{session.num_hidden} of {session.num_exchanges} exchanges)"
        )


def _print(pieces: Generator[str, None, None], terminal: Terminal) -> None:
    """One answer as it comes. In front of a person, Ctrl-C stops the answer only."""
    reader = ThoughtReader(terminal.thinks_at_once)
    try:
        for piece in pieces:
            shown = reader.push(piece)
            terminal.show(shown if terminal.fold else piece)
    except KeyboardInterrupt:
        pieces.close()  # so that the session keeps what there is, wherever the interrupt came
        if not terminal.interactive:
            raise
        terminal.note(" (stopped)")
    finally:
        rest = reader.close()
        terminal.show(f"{rest if terminal.fold else ''}\n")
        terminal.thoughts = reader.thoughts.strip()
    if terminal.fold and terminal.thoughts:
        terminal.note(f"(thought {len(terminal.thoughts.split()):,} words before that; /think shows them)")


def _results(calls: Sequence[Call], terminal: Terminal) -> list[str]:
    """What a person types as the results of calls; nothing if there are none, or the input ends."""
    results: list[str] = []
    for call in calls:
        terminal.note(f"The model calls {call.name}({call.arguments}). Type the result; Ctrl-D: no result.")
        try:
            line = terminal.line(f"{call.name} = ")
        except KeyboardInterrupt:
            if not terminal.interactive:
                raise
            line = None
        if line is None:
            return []
        results.append(line)
    return results


def _obey(session: Talk, terminal: Terminal, line: str) -> bool:
    """Does what a command says. False: leave."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    commands: dict[str, Callable[[], str]] = {
        "/reset": lambda: _reset(session),
        "/system": lambda: _set_system(session, rest),
        "/undo": lambda: "took the last exchange back" if session.undo() else "there is nothing to take back",
        "/save": lambda: _save(session, rest),
        "/think": lambda: _think(terminal, rest),
        "/help": lambda: HELP,
    }
    if name == "/exit":
        return False
    if name not in commands:
        near = get_close_matches(name, [*commands, "/exit"], 1, 0.75)
        raise DataError(
            f"there is no command {name}; " + (f"did you mean {near[0]}?" if near else "see /help")
        )
    terminal.note(commands[name]())
    return True


def _reset(session: Talk) -> str:
    session.reset()
    return "forgot the conversation"


def _set_system(session: Talk, text: str) -> str:
    session.system = text or None
    return f"system prompt: {text}" if text else "no system prompt"


def _think(terminal: Terminal, how: str) -> str:
    if how not in ("", "show", "fold"):
        raise DataError(f"/think takes show or fold, or nothing, not {how!r}")
    if how:
        terminal.fold = how == "fold"
        return f"thoughts: {'folded' if terminal.fold else 'shown'}"
    return terminal.thoughts or "the model has thought nothing before its last answer"


def _save(session: Talk, name: str) -> str:
    if not name:
        raise DataError("/save needs the name of a file, such as /save chat.jsonl")
    session.save(Path(name))
    return f"saved to {name}"


def _printable(character: str) -> bool:
    return character in "\n\t" or unicodedata.category(character) != "Cc"


def _enable_line_editing() -> None:
    """Arrow keys and history in `input`, where Python was built with them."""
    with suppress(ImportError):
        import readline  # noqa: F401
