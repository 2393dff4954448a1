"""Two conversations in step: the same questions to a model before and after training."""

from collections.abc import Mapping
from pathlib import Path

from luthier.serve.chat import ChatSession


class SideBySide:
    """Sessions that are asked the same. Each keeps its own answers in its own history.

    Args:
        sessions: by the names that their answers are shown under.
    """

    def __init__(self, sessions: Mapping[str, ChatSession]):
        assert sessions, "there is somebody to ask"
        self.sessions = dict(sessions)

    @property
    def system(self) -> str | None:
        """The system prompt, which all have in common."""
        return next(iter(self.sessions.values())).system

    @system.setter
    def system(self, text: str | None) -> None:
        for session in self.sessions.values():
            session.system = text

    def reset(self) -> None:
        """All forget all exchanges."""
        for session in self.sessions.values():
            session.reset()

    def undo(self) -> bool:
        """Takes the last exchange back everywhere. False if there is none."""
        undone = [session.undo() for session in self.sessions.values()]
        return any(undone)

    def save(self, path: Path) -> None:
        """Writes each conversation to a file of its own, with its name before the suffix. Errors: as ChatSession."""
        for label, session in self.sessions.items():
            session.save(path.with_stem(f"{path.stem}-{label}"))
