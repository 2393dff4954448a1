"""How far a run has come, and what each step has to say."""

import math
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

    def took_step(self, tokens: int, seconds: float) -> None:
        """Counts an optimizer step."""
        self.step += 1
        self.tokens += tokens
        self.seconds += seconds

    def total_steps(self, planned: int, max_tokens: int | None) -> int:
        """Steps of the whole run: so many, or with a budget of tokens what it takes at the pace so far."""
        if max_tokens is None or not self.tokens:
            return planned
        return self.step + math.ceil(max(0, max_tokens - self.tokens) * self.step / self.tokens)

    def position(self, planned: int, max_tokens: int | None) -> float:
        """Where the schedule stands: at the step, or at that share of the planned steps that the tokens are."""
        return self.step if max_tokens is None else planned * self.tokens / max_tokens


@dataclass
class Report:
    """What one step has to say; hooks read it and may add to it."""

    step: int
    values: dict[str, float] = field(default_factory=dict)
