"""The chat in a terminal or a pipe: reads questions and commands, prints answers while they come.

Answers go to standard output; everything else goes to standard error, so that a pipe gets answers only.
"""

import sys
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import TextIO

from luthier.errors import DataError, LuthierError
from luthier.serve.chat import ChatSession

HELP = """\
/reset        forget the conversation, keep the system prompt
/system TEXT  set the system prompt; without TEXT: take it away
/undo         take back the last question and its answer
/save FILE    write the conversation to a new file, as a row of chat data
/exit         leave (so does Ctrl-D)
/help         this list
A question that begins with a slash: write the slash twice. Ctrl-C stops an answer."""


class Terminal:
    """Two streams to write to, and whether somebody sits in front of them."""

    def __init__(
        self, out: TextIO | None = None, notes: TextIO | None = None, interactive: bool | None = None
    ):
        self.out = out or sys.stdout
        self.notes = notes or sys.stderr
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty() if interactive is None else interactive

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
        if not self.interactive:
            yield from (_readable(line.rstrip("\r\n")) for line in sys.stdin)
            return
        _enable_line_editing()
        while True:
            try:
                yield _readable(input("> "))
            except KeyboardInterrupt:
                self.note("\n(Ctrl-D or /exit leaves)")
            except EOFError:
                self.note("")
                return


def _readable(text: str) -> str:
    """The text with a sign in place of bytes that are not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def converse(session: ChatSession, terminal: Terminal) -> None:
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


def answer(session: ChatSession, terminal: Terminal, text: str) -> None:
    """Prints the answer to a question as it comes. In front of a person, Ctrl-C stops the answer only."""
    hidden = session.num_hidden
    pieces = session.ask(text)
    try:
        for piece in pieces:
            terminal.show(piece)
    except KeyboardInterrupt:
        pieces.close()  # so that the session keeps what there is, wherever the interrupt came
        if not terminal.interactive:
            raise
        terminal.note(" (stopped)")
    finally:
        terminal.show("\n")
    if session.num_hidden > hidden:
        terminal.note(
            "(the conversation outgrew the model's context: it no longer sees the oldest "
            f"{session.num_hidden} of {len(session.history) // 2} exchanges)"
        )


def _obey(session: ChatSession, terminal: Terminal, line: str) -> bool:
    """Does what a command says. False: leave."""
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    commands: dict[str, Callable[[], str]] = {
        "/reset": lambda: _reset(session),
        "/system": lambda: _set_system(session, rest),
        "/undo": lambda: "took the last exchange back" if session.undo() else "there is nothing to take back",
        "/save": lambda: _save(session, rest),
        "/help": lambda: HELP,
    }
    if name == "/exit":
        return False
    if name not in commands:
        near = get_close_matches(name, [*commands, "/exit"], 1)
        raise DataError(
            f"there is no command {name}; " + (f"did you mean {near[0]}?" if near else "see /help")
        )
    terminal.note(commands[name]())
    return True


def _reset(session: ChatSession) -> str:
    session.reset()
    return "forgot the conversation"


def _set_system(session: ChatSession, text: str) -> str:
    session.system = text or None
    return f"system prompt: {text}" if text else "no system prompt"


def _save(session: ChatSession, name: str) -> str:
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
