"""Where a run stands: `status.json`, one small file that is always whole."""

import json
import time
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

from luthier.errors import RunError
from luthier.runs.process import ProcessMark

State = Literal["running", "done", "failed", "interrupted"]
STATES = ("running", "done", "failed", "interrupted")


@dataclass(frozen=True)
class RunStatus:
    """What a run is doing, or how it ended. Times are seconds since 1970 (UTC)."""

    state: State
    step: int = 0
    num_steps: int | None = None
    """Steps that the whole run has; None until that is known."""
    pid: int | None = None
    process: str = ""
    """The process in a form that can be told from every other: see `ProcessMark`."""
    started: float = field(default_factory=time.time)
    """When it was started for the first time."""
    taken_up: float = field(default_factory=time.time)
    """When it was started or resumed last."""
    seconds_before: float = 0.0
    """How long it had worked before it was resumed last."""
    updated: float = field(default_factory=time.time)
    ended: float | None = None
    message: str = ""
    """Why the run failed or stopped, in a sentence."""

    @classmethod
    def begin(cls) -> Self:
        """A run that this process starts to work on now."""
        mark = ProcessMark.current()
        now = time.time()
        return cls("running", pid=mark.pid, process=str(mark), started=now, taken_up=now, updated=now)

    def again(self) -> "RunStatus":
        """The same run, resumed by this process now."""
        fresh = RunStatus.begin()
        return replace(
            fresh,
            step=self.step,
            num_steps=self.num_steps,
            started=self.started,
            seconds_before=self.seconds(),
        )

    def moved(self, state: State, step: int | None, num_steps: int | None, message: str) -> "RunStatus":
        """The same run further on; None keeps what was. Every state but `running` ends it."""
        now = time.time()
        return replace(
            self,
            state=state,
            step=self.step if step is None else step,
            num_steps=self.num_steps if num_steps is None else num_steps,
            updated=now,
            ended=None if state == "running" else now,
            message=message,
        )

    def is_alive(self) -> bool | None:
        """Whether its process still lives; None where that cannot be seen from this machine."""
        try:
            life = ProcessMark.parse(self.process).life()
        except ValueError:
            return None
        return None if life == "elsewhere" else life == "alive"

    def seconds(self) -> float:
        """How long the run has worked, without pauses: up to its end, to now, or to its last sign of life."""
        now = time.time() if self.state == "running" and self.is_alive() else self.updated
        return self.seconds_before + max(0.0, (self.ended or now) - self.taken_up)

    def to_json(self) -> str:
        """The content of `status.json`."""
        return json.dumps(asdict(self), indent=2) + "\n"


def read_status(path: Path) -> RunStatus:
    """Reads `status.json`. Raises RunError where it is missing or is not one."""
    try:
        found: Any = json.loads(path.read_text())
    except FileNotFoundError:
        raise RunError(f"{path} is missing: {path.parent} is not the folder of a run.") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}); the run's state is unknown.") from error
    if not isinstance(found, dict) or found.get("state") not in STATES:
        raise RunError(f"{path} does not hold the state of a run ({', '.join(STATES)}).")
    known = {item.name for item in fields(RunStatus)}
    values = {name: value for name, value in found.items() if name in known}
    for name, kinds in _TYPES.items():
        if name in values and (not isinstance(values[name], kinds) or isinstance(values[name], bool)):
            raise RunError(f"{path}: `{name}` is {values[name]!r}, which is not what a run writes.")
    return RunStatus(**values)


_TYPES: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "num_steps": (int, type(None)),
    "pid": (int, type(None)),
    "process": (str,),
    "started": (int, float),
    "taken_up": (int, float),
    "seconds_before": (int, float),
    "updated": (int, float),
    "ended": (int, float, type(None)),
    "message": (str,),
}
