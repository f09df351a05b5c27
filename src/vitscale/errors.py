"""Every error vitscale raises on purpose, and the exit status each one ends the command with.

    VitscaleError
    ├── UsageError        2  the study, an override or an argument is wrong; nothing was started
    │   └── Infeasible    2  legal values whose combination cannot exist; a sweep records it and goes on
    ├── SetupError        3  this machine lacks something: a package, a device, a port, memory
    ├── DataError         4  a data set is missing, damaged, altered or not what it says it is
    ├── WorkerError       5  a worker process ended before its work was done
    ├── MemoryExceeded    6  a device or host ran out of memory
    ├── HangError         7  a time limit passed without progress
    ├── DivergedError     8  a loss or a gradient is no longer finite
    ├── CheckpointError   9  a checkpoint cannot be used
    ├── ResultsError     10  a results folder cannot be read or written
    └── Interrupted      75  stopped by a signal; the same command goes on (sysexits' EX_TEMPFAIL)
        └── LeftRunning  75  the same, and a scheduler goes on with its jobs; the same command picks them up

A user's mistake is one of these, never a traceback. A broken invariant of ours is an `assert`.
"""

from __future__ import annotations


class VitscaleError(Exception):
    """An error with a message in the user's words and, where there is one, a way out.

    Args:
        message: what is wrong, with the values, in one line; names in backticks.
        hint: what to type or change, in one line.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(VitscaleError):
    """The study, an override or an argument is wrong; nothing was started."""

    exit_code = 2


class Infeasible(UsageError):
    """Legal values whose combination cannot exist: a sweep records the reason and goes on."""


class SetupError(VitscaleError):
    """This machine lacks something: a package, a device, a port, memory."""

    exit_code = 3


class DataError(VitscaleError):
    """A data set is missing, damaged, altered or not what it says it is."""

    exit_code = 4


class WorkerError(VitscaleError):
    """A worker process ended before its work was done."""

    exit_code = 5


class MemoryExceeded(VitscaleError):
    """A device or host ran out of memory."""

    exit_code = 6


class HangError(VitscaleError):
    """A time limit passed without progress."""

    exit_code = 7


class DivergedError(VitscaleError):
    """A loss or a gradient is no longer finite."""

    exit_code = 8


class CheckpointError(VitscaleError):
    """A checkpoint cannot be used."""

    exit_code = 9


class ResultsError(VitscaleError):
    """A results folder cannot be read or written."""

    exit_code = 10


class Interrupted(VitscaleError):
    """Stopped by a signal; the same command goes on with what is missing."""

    exit_code = 75


class LeftRunning(Interrupted):
    """Stopped by a signal, and a scheduler goes on with its jobs; the same command picks them up."""
