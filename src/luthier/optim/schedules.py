"""How the learning rate moves: a pure function of the step, so that there is no state to save.

Warm-up rises linearly from 1/warm-up to 1. Then `constant` stays; `linear` and `cosine` fall towards `min_ratio`,
which they would reach one step after the last (a last step at rate 0 would be wasted); `wsd` (warm-up, stable,
decay; Hu et al., 2024, arXiv:2404.06395) stays and falls over the last `decay_steps`: in a straight line, or as
1 - sqrt(share of the decay that is done) (Hägele et al., 2024, arXiv:2405.18392).

While wsd is stable its factor does not depend on how many steps there will be. So a run can be decayed from any
of its checkpoints, with any number of steps to go.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Factor on the peak learning rate for each step, counted from 0."""

    name: str
    total_steps: int
    warmup_steps: int = 0
    min_ratio: float = 0.0
    decay_ratio: float = 0.2
    decay_steps: int | None = None
    """wsd: the last so many steps decay; None: `decay_ratio` of all."""
    decay_shape: str = "linear"
    """wsd: linear or 1-sqrt."""
    restarts: tuple[int, ...] = ()
    """Steps before which adapters begin anew (arXiv:2307.05695)."""
    rewarm_steps: int = 0
    """After each of them the factor rises to where it would be in so many steps."""

    def __call__(self, step: float) -> float:
        """The factor at `step`; steps after the last keep the last factor. With a budget of tokens a step may be
        a part of one."""
        since = min((step - start for start in self.restarts if step >= start), default=math.inf)
        rising = min(1.0, (since + 1) / max(1, self.rewarm_steps))
        return rising * self._without_restarts(step)

    def _without_restarts(self, step: float) -> float:
        if step < self.warmup_steps:
            return min(1.0, (step + 1) / self.warmup_steps)
        # 0 at the first step after warm-up, 1 at the step after the last
        span = max(1, self.total_steps - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / span)
        return self.min_ratio + (1 - self.min_ratio) * SHAPES[self.name](progress, self)


def _wsd(progress: float, schedule: Schedule) -> float:
    after_warmup = max(1, schedule.total_steps - schedule.warmup_steps)
    steps = schedule.decay_steps or schedule.decay_ratio * schedule.total_steps
    left = min(1.0, (1 - progress) / min(1.0, steps / after_warmup))  # of the decay
    return left if schedule.decay_shape == "linear" else 1 - math.sqrt(1 - left)


SHAPES: dict[str, Callable[[float, Schedule], float]] = {
    "constant": lambda progress, schedule: 1.0,
    "linear": lambda progress, schedule: 1 - progress,
    "cosine": lambda progress, schedule: 0.5 * (1 + math.cos(math.pi * progress)),
    "wsd": _wsd,
}
