"""A chat: what the model is shown, what the history keeps, and what the terminal prints."""

import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from luthier.errors import DataError
from luthier.rollout.native import NativeGenerator
from luthier.rollout.sampling import SamplingSettings
from luthier.serve.chat import ChatSession, Message
from luthier.serve.terminal import Terminal, answer, converse
from tiny_models import tiny_llama

SETTINGS = SamplingSettings(max_new_tokens=8, temperature=1.0)


class Letters:
    """A template and tokenizer with one token for each letter: role, content, end."""

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        text = "".join(f"{message['role'][0]}{message['content']}." for message in messages) + "a"
        return [ord(letter) for letter in text]

    def decode(self, token_ids: list[int], **options: bool) -> str:
        return "".join(map(chr, token_ids))


class Echo:
    """Answers with what it was shown, letter by letter; may be interrupted, or fail, after some of them."""

    def __init__(
        self, max_positions: int | None = None, break_after: int = -1, error: BaseException | None = None
    ):
        self.max_positions = max_positions
        self.break_after = break_after
        self.error = error
        self.shown: list[str] = []
        self.seeds: list[int] = []

    def stream(self, prompt: Sequence[int], settings: SamplingSettings) -> Iterator[str]:
        self.shown.append("".join(map(chr, prompt)))
        self.seeds.append(settings.seed)
        for number, letter in enumerate("echo"):
            if number == self.break_after and self.error:
                raise self.error
            yield letter


def session_with(echo: Echo, system: str | None = None, settings: SamplingSettings = SETTINGS) -> ChatSession:
    return ChatSession(echo, Letters(), settings, system=system)


def chat(
    echo: Echo, text: str, interactive: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, str, ChatSession]:
    """What is printed and noted while the lines of `text` are typed or piped in."""
    out, notes, session = io.StringIO(), io.StringIO(), session_with(echo)
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    converse(session, Terminal(out, notes, interactive))
    return out.getvalue(), notes.getvalue(), session


def test_the_model_is_shown_system_history_and_question() -> None:
    session = session_with(echo := Echo(), system="be kind")
    assert "".join(session.ask("one")) == "echo"
    assert "".join(session.ask("two")) == "echo"
    assert echo.shown == ["sbe kind.uone.a", "sbe kind.uone.aecho.utwo.a"]
    assert [message["role"] for message in session.messages] == ["system", *["user", "assistant"] * 2]


def test_reset_undo_and_system() -> None:
    session = session_with(echo := Echo(), system="old")
    for text in "abc":
        list(session.ask(text))
    assert session.undo()
    session.system = "new"
    list(session.ask("d"))
    assert echo.shown[-1] == "snew.ua.aecho.ub.aecho.ud.a"
    session.reset()
    assert not session.undo()
    session.system = None
    list(session.ask("e"))
    assert echo.shown[-1] == "ue.a"


def test_the_oldest_exchanges_are_hidden_when_the_context_is_full() -> None:
    """An exchange takes 8 letters here; 30 hold the question, 8 letters of answer and two exchanges."""
    session = session_with(echo := Echo(max_positions=30))
    hidden = []
    for text in "abcdef":
        list(session.ask(text))
        hidden.append(session.num_hidden)
        assert len(echo.shown[-1]) + SETTINGS.max_new_tokens <= 30
    assert hidden == [0, 0, 0, 1, 2, 3]
    assert echo.shown[-1] == "ud.aecho.ue.aecho.uf.a"
    assert len(session.history) == 12  # nothing is lost, so it can still be saved whole
    for _ in range(4):
        session.undo()
    assert session.num_hidden == 2


def test_room_for_a_long_answer_never_hides_everything() -> None:
    session = session_with(echo := Echo(max_positions=40), settings=SamplingSettings(max_new_tokens=1000))
    for text in "abc":
        list(session.ask(text))
    assert echo.shown[-1] == "ub.aecho.uc.a"


def test_a_question_that_cannot_fit_is_refused_and_forgotten() -> None:
    session = session_with(Echo(max_positions=20))
    list(session.ask("a"))
    with pytest.raises(DataError, match=r"question takes 33 tokens with its system prompt, but .* holds 20"):
        list(session.ask("x" * 30))
    assert len(session.history) == 2
    assert "".join(session.ask("b")) == "echo"


@pytest.mark.parametrize("break_after", [0, 2])
@pytest.mark.parametrize(("error", "keeps"), [(KeyboardInterrupt(), True), (DataError("no"), False)])
def test_a_broken_answer_leaves_a_whole_history(break_after: int, error: BaseException, keeps: bool) -> None:
    """An interrupted answer stays as far as it came; one that failed is forgotten with its question."""
    session = session_with(Echo(break_after=break_after, error=error))
    with pytest.raises(type(error)):
        list(session.ask("one"))
    kept = [("user", "one"), ("assistant", "ec")] if keeps and break_after else []
    assert [(message["role"], message["content"]) for message in session.history] == kept


def test_a_reader_that_walks_away_keeps_what_it_read() -> None:
    session = session_with(Echo())
    pieces = session.ask("one")
    next(pieces), next(pieces)
    pieces.close()
    assert session.history[-1] == {"role": "assistant", "content": "ec"}


def test_answers_differ_within_a_session_and_repeat_with_its_seed() -> None:
    session = session_with(echo := Echo(), settings=SamplingSettings(temperature=1.0, seed=7))
    for _ in range(3):
        list(session.ask("again"))
    assert echo.seeds == [7, 8, 9]


def test_a_saved_chat_is_a_row_of_chat_data(tmp_path: Path) -> None:
    session = session_with(Echo(), system="süß")
    list(session.ask("one"))
    session.save(tmp_path / "chat.jsonl")
    (line,) = (tmp_path / "chat.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"messages": session.messages} and "süß" in line
    with pytest.raises(DataError, match=r"chat\.jsonl exists and is left as it is; give another name"):
        session.save(tmp_path / "chat.jsonl")
    with pytest.raises(
        DataError, match=r"cannot be written \(No such file or directory\); give another place"
    ):
        session.save(tmp_path / "nowhere" / "chat.jsonl")


def test_a_real_generator_talks() -> None:
    letters = Letters()
    generator = NativeGenerator(tiny_llama(vocab_size=128), eos_token_ids=[], tokenizer=letters)
    session = ChatSession(generator, letters, SETTINGS)
    pieces = list(session.ask("hello"))
    expected = generator.generate([letters.prompt_ids([{"role": "user", "content": "hello"}])], SETTINGS)
    assert len(pieces) == 8 and "".join(pieces) == expected[0][0].text == session.history[-1]["content"]


def test_a_pipe_gets_answers_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    out, notes, session = chat(Echo(), "one\n\n  two \r\nthree", False, monkeypatch)
    assert out == "echo\n" * 3 and notes == ""
    assert [message["content"] for message in session.history[::2]] == ["one", "two", "three"]


def test_commands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    lines = [
        *(
            "/system be brief",
            "one",
            "two",
            "/undo",
            f"/save {tmp_path / 'a b.jsonl'}",
            "//etc/passwd",
            "/reset",
        ),
        *("/undo", "/system", "/sav x", "/nothing", "/save", "/help", "/exit", "never asked"),
    ]
    out, notes, session = chat(echo := Echo(), "\n".join(lines), False, monkeypatch)
    assert out == "echo\n" * 3 and session.messages == []
    assert echo.shown[-1] == "sbe brief.uone.aecho.u/etc/passwd.a"
    assert len(json.loads((tmp_path / "a b.jsonl").read_text())["messages"]) == 3
    told = notes.splitlines()
    assert told[:4] == [
        "system prompt: be brief",
        "took the last exchange back",
        f"saved to {tmp_path / 'a b.jsonl'}",
        "forgot the conversation",
    ]
    assert told[4:9] == [
        "there is nothing to take back",
        "no system prompt",
        "error: there is no command /sav; did you mean /save?",
        "error: there is no command /nothing; see /help",
        "error: /save needs the name of a file, such as /save chat.jsonl",
    ]
    for name in ("/reset", "/system", "/undo", "/save", "/exit", "/help"):
        assert any(line.startswith(name) for line in told[9:])


def test_hidden_exchanges_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    _, notes, _ = chat(Echo(max_positions=30), "a\nb\nc\nd\n", False, monkeypatch)
    assert notes == (
        "(the conversation outgrew the model's context: it no longer sees the oldest 1 of 4 exchanges)\n"
    )


def test_an_error_does_not_end_the_chat(monkeypatch: pytest.MonkeyPatch) -> None:
    out, notes, _ = chat(Echo(max_positions=20), "x" * 30 + "\nb\n", False, monkeypatch)
    assert notes.startswith("error: the question takes 33 tokens") and out.endswith("echo\n")


def test_ctrl_c_stops_the_answer_and_keeps_the_session(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = iter(["one", KeyboardInterrupt(), "two", EOFError()])

    def type_next(prompt: str) -> str:
        line = next(typed)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", type_next)
    out, notes, session = chat(Echo(break_after=2, error=KeyboardInterrupt()), "", True, monkeypatch)
    assert out == "ec\nec\n" and notes.count("(stopped)") == 2 and "(Ctrl-D or /exit leaves)" in notes
    assert [message["content"] for message in session.history] == ["one", "ec", "two", "ec"]


def test_ctrl_c_ends_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        chat(Echo(break_after=2, error=KeyboardInterrupt()), "one\ntwo\n", False, monkeypatch)


@pytest.mark.parametrize(("interactive", "printed"), [(True, "a[2Jb\tc\n\n"), (False, "a\x1b[2Jb\tc\n\n")])
def test_control_characters_never_reach_a_screen(interactive: bool, printed: str) -> None:
    class Escapes(Echo):
        def stream(self, prompt: Sequence[int], settings: SamplingSettings) -> Iterator[str]:
            yield "a\x1b[2Jb\tc\n"

    out = io.StringIO()
    answer(session_with(Escapes()), Terminal(out, io.StringIO(), interactive), "one")
    assert out.getvalue() == printed
