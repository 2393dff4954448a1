"""Errors that people see. Each says what was found, why it cannot work and what to change.

`exit_code` is the status the command line ends with: 2 where the user's input is wrong, 1 where a run failed.
"""


class LuthierError(Exception):
    """Base of every error meant for a person; the command line prints it as one message, without a traceback."""

    exit_code = 1


class ConfigError(LuthierError, ValueError):
    """The configuration cannot work. Holds every fault found, not only the first."""

    exit_code = 2

    def __init__(self, faults: str | list[str]):
        self.faults = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))


class DataError(LuthierError, ValueError):
    """The data cannot be read or gives nothing to learn from."""

    exit_code = 2


class RowRefused(DataError):
    """One row cannot be used. Its reason goes to the ledger; the run goes on while few rows are refused."""


class SetAside(RowRefused):
    """A row that is left out on purpose, such as a duplicate. It goes to the ledger and does not count as a fault."""


class ModelError(LuthierError, ValueError):
    """The model, its tokenizer or its adapter cannot be found or used as asked."""

    exit_code = 2


class RunError(LuthierError, RuntimeError):
    """A run failed while it was under way: a full disk, a non-finite loss, a broken checkpoint."""


class Interrupted(LuthierError):
    """A run was asked to stop (SIGINT or SIGTERM) and has saved a whole checkpoint."""

    exit_code = 130


class StopWaiting(BaseException):
    """Ends a wait for rows because the run was asked to stop. Raised out of a signal's handler, so that it ends
    reading, tokenising and waiting alike; no `except Exception` on the way takes it for a fault of the rows.
    """
