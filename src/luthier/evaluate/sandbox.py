"""Runs Python that a model wrote in a process of its own that can do little harm.

The process has limits of time, memory and file size, sees an empty environment and an empty folder, and by rules of
Linux's kernel (Landlock, seccomp) it writes files there only and makes no sockets, no processes and no signals to
others (`sandbox_child.py`). It can read what its user can read. This keeps clumsy code from doing damage; whoever
expects an attack should use a virtual machine.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from luthier.errors import ConfigError

SECONDS = 10.0
MEGABYTES = 1024
_CHILD = Path(__file__).with_name("sandbox_child.py")


@dataclass(frozen=True)
class End:
    """How a program ended."""

    passed: bool
    """It ran to its end without an error."""
    reason: str
    """Why not: the error's name and text, `time`, or `exit` where it ended in another way. Empty if it passed."""


def run(program: str, *, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> End:
    """Runs a program to its end, or to the end of its time.

    Raises:
        ConfigError: this system cannot fence it in; nothing was run.
    """
    token = secrets.token_hex(16)
    told, write = os.pipe()
    order = {"program": program, "seconds": seconds, "bytes": megabytes << 20, "token": token, "to": write}
    with (
        tempfile.TemporaryDirectory(prefix="luthier-code-", ignore_cleanup_errors=True) as folder,
        os.fdopen(told, "rb") as report,
    ):
        try:
            child = subprocess.Popen(
                [sys.executable, "-I", str(_CHILD)],
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=(write,), cwd=folder, env={"PYTHONHASHSEED": "0"}, start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(write)
        late = _feed(child, json.dumps(order).encode(), seconds)
        text = report.read(1 << 16)  # the child is gone, so this ends
    lines = [line for line in text.decode("utf-8", "replace").splitlines() if line.startswith(token)]
    said = json.loads(lines[-1][len(token) :]) if lines else {"passed": False, "reason": "exit"}
    if said.get("unfenced"):
        raise ConfigError(
            f"code cannot be run safely on this system ({said['unfenced']}), so the metric `code` cannot be measured; "
            "it needs Linux 5.13 or newer with Landlock and seccomp, on x86-64 or ARM"
        )
    return End(False, "time") if late else End(bool(said["passed"]), str(said["reason"]))


def check() -> None:
    """Raises ConfigError where programs cannot be fenced in."""
    if sys.platform != "linux":
        raise ConfigError(
            "the metric `code` runs programs behind fences that only Linux has; measure it there"
        )
    run("")


def _feed(child: "subprocess.Popen[bytes]", order: bytes, seconds: float) -> bool:
    """Hands a child its order and waits for its end; whether its time was over first."""
    try:
        child.communicate(order, timeout=seconds + 2)  # it stops itself at `seconds` of work
        return child.returncode == -signal.SIGXCPU
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        return True
