"""How far a run has come, and what each step has to say."""

from dataclasses import dataclass, field


@dataclass
class Progress:
    """How far a run has come: all that a checkpoint needs besides weights, optimizer and random state."""

    step: int = 0
    tokens: int = 0
    best_loss: float | None = None
    best_step: int = 0
    bad_evaluations: int = 0
    evaluated_step: int = 0
    """The last step after which the held-out rows were looked at."""
    stopping: str = ""
    """Why a hook wants no further step, the same on every rank; also after a resume."""
    seconds: float = 0.0


@dataclass
class Report:
    """What one step has to say; hooks read it and may add to it."""

    step: int
    values: dict[str, float] = field(default_factory=dict)
