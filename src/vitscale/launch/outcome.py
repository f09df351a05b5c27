"""What launchers share: how a round ended, and what they tell while it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from vitscale.records.round import Beat, Round
from vitscale.records.schema import Status

Watch = Callable[[Beat], None]


class Killed(NamedTuple):
    """A rank that a signal ended."""

    rank: int
    signal: str
    """Its name, `SIGKILL`."""
    host: str | None = None
    """In words; None where it says nothing, as there is one."""


class RoundEnd(NamedTuple):
    """How a round ended. `status` is `ok` where every launch of it is finished."""

    status: Status
    reason: str | None = None
    kind: str | None = None
    """What a rank said it was: `oom`, `diverged`, `checkpoint`, `setup`; None where no rank said anything of it.
    `setup` is what every further start would meet again. `time_limit` is a scheduler's, which ended all of them."""
    hint: str | None = None
    """What to type or to change, where a rank knew."""
    again: bool = True
    """Whether what is left of the round may be tried once more right away: not where a user cancelled its job."""


class Launcher(Protocol):
    """Starts the ranks of a round and waits for their end."""

    def run(self, results: Path, round_: Round, watch: Watch) -> RoundEnd:
        """Serve a round; `watch` hears the slowest rank's heartbeat a few times a second."""


@runtime_checkable
class Queue(Launcher, Protocol):
    """A launcher whose rounds go on without this process: what a scheduler has taken is waited for by `run`.

    `run` raises `LeftRunning` when this process is asked to stop. Examinations do not go on.
    """

    takes_all: bool
    """Whether the rounds of all launches are handed over together, not only one of each run."""

    def submit(self, results: Path, rounds: Sequence[Round]) -> str | None:
        """Hand over those of the rounds that are not yet, as many as are taken; what became of them, in words."""

    def withdraw(self, results: Path, round_: Round) -> None:
        """End what goes on for a round that nobody will ask `run` for."""

    def left(self, results: Path) -> list[Round]:
        """Rounds that an earlier process handed over and did not see end, but for examinations: those are ended."""
