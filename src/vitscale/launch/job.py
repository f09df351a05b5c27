"""The ranks of a round that SLURM starts, by a job or by a step of one: how they are reached, and what ended them."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import tempfile
import time
from pathlib import Path

from vitscale.launch.attend import SHARED
from vitscale.launch.outcome import Killed, RoundEnd
from vitscale.launch.processes import Ranks
from vitscale.launch.sbatch import LOG, STATUS
from vitscale.launch.scheduler import FORGOTTEN, Scheduler, State

_POLL_S = 0.2
_ASK_S = 15.0
"""How often SLURM is asked about a job whose files do not change."""
_SOON_S = 1.0
"""The same where they say that it has ended."""
_GONE_S = 60.0
"""Longest wait for a job that is ended to be gone: SLURM gives ranks 30 s after SIGTERM."""
_STACKS_S = 2.0
"""Signals take their way over the network, and so do the stacks of the ranks."""


class RanksOfJob(Ranks):
    """The ranks of a round that a job starts. They are reached through SLURM alone."""

    def __init__(self, scheduler: Scheduler, job: str, folder: Path) -> None:
        super().__init__()
        self._scheduler, self._job, self._folder = scheduler, job, folder
        self._state: State | None = None
        self._asked = -_ASK_S

    def waiting(self) -> bool:
        """Whether the job has not begun and still may, as far as is known."""
        state = self._look(_ASK_S)
        return self._status() is None and (state is None or (state.waiting and not state.never))

    def codes(self) -> list[int | None]:
        """How the job's script ended, as soon as it says so; else what SLURM says of the job."""
        status = self._status()
        if status == 0:
            return [0]
        state = self._look(_ASK_S if status is None else _SOON_S)
        if state is None or not (state.over or state.never):
            return [None]
        return [0 if state.name == "COMPLETED" and status is None else status or 1]

    def _status(self) -> int | None:
        """What the script left when `srun` had ended."""
        with contextlib.suppress(OSError, ValueError):
            return int((self._folder / STATUS).read_text())
        return None

    def _look(self, every_s: float) -> State | None:
        """SLURM's last word on the job; it is asked once in so many seconds."""
        if not (self._state and self._state.over) and time.monotonic() - self._asked >= every_s:
            self._asked = time.monotonic()
            self._state = self._scheduler.state(self._job) or self._state
        return self._state

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all ranks."""
        self._scheduler.signal(self._job, number)
        time.sleep(_STACKS_S)

    def outcome(self) -> RoundEnd | None:
        """How the job ended, where that was not its ranks' doing."""
        if self._state is None:
            return None
        begun = self._has_log()
        if self._state.name == FORGOTTEN and not begun:
            # An array's element that is cancelled while it waits leaves nothing in the queue.
            return RoundEnd("killed", f"job {self._job} left the queue before it began", again=False)
        end = ended_by_slurm(self._job, self._state, _errors(self._folder))
        if end is None and not begun:
            told = f"job {self._job} left no word in the results folder, which its nodes have to share"
            # Where another round's job has found the folder it is one node that does not.
            seen = any(self._folder.parent.glob(f"*/{LOG}"))
            return RoundEnd("failed", told, None if seen else "setup", SHARED)
        return end

    def _has_log(self) -> bool:
        """Whether the job's script has found the results folder."""
        with contextlib.suppress(OSError), tempfile.TemporaryFile(dir=self._folder):
            pass  # a network file system that has seen the folder change here does not answer from memory
        return (self._folder / LOG).exists()

    def killed(self) -> Killed | None:
        """Which rank was ended by a signal, as `srun` tells."""
        return killed_of(_errors(self._folder))

    def ended(self) -> str:
        """How SLURM says the job ended."""
        return f"job {self._job} ended, SLURM says {self._state.name if self._state else 'nothing'}"

    def end(self) -> None:
        """End the job if it works, and wait until no rank writes any more."""
        if self.codes() != [None] and not (self._state and self._state.never):
            return
        self._scheduler.signal(self._job, signal.SIGKILL)
        self._scheduler.cancel(self._job)
        deadline = time.monotonic() + _GONE_S
        while time.monotonic() < deadline:
            if (state := self._look(_SOON_S)) and state.over:
                return
            time.sleep(_POLL_S)


def ended_by_slurm(job: str, state: State, errors: str) -> RoundEnd | None:
    """A round's end by the state of its job, None where its ranks know better. `errors` is what `srun` said."""
    if state.never:
        return RoundEnd("failed", f"job {job} cannot start, SLURM says {state.reason}", again=False)
    if state.name == "CANCELLED":
        return RoundEnd("killed", f"job {job} was cancelled", again=False)
    if state.name in ("TIMEOUT", "DEADLINE"):
        return RoundEnd("timeout", f"job {job} reached its time limit (launch.time_limit)", "time_limit")
    if state.name in ("PREEMPTED", "REVOKED"):
        return RoundEnd("killed", f"job {job} was preempted")
    if state.name in ("NODE_FAIL", "BOOT_FAIL"):
        match = re.search(r"Node failure on (\S+)", errors)
        return RoundEnd("failed", f"job {job} lost a node: {match[1] if match else state.nodes}")
    if state.name == "OUT_OF_MEMORY":
        return RoundEnd("oom", f"job {job} ran out of host memory, SLURM says", "oom")
    return None


_FIRST = re.compile(r"^srun: error: (\S+): tasks? (\d+)[^:\n]*: ([^(\n]+)", re.MULTILINE)


def killed_of(errors: str) -> Killed | None:
    """Which rank a signal ended, as `srun` tells, if that was the first end: the ranks that it then ends come after."""
    match = _FIRST.search(errors)
    if match is None or match[3].startswith("Exited"):
        return None
    told = match[3].strip()
    names = {signal.strsignal(one): one.name for one in signal.Signals}
    return Killed(int(match[2]), names.get(told, told), f"node `{match[1]}`")


def _errors(folder: Path) -> str:
    path = folder / "stderr.log"
    return path.read_text(errors="replace") if path.is_file() else ""


class RanksOfStep(Ranks):
    """The ranks of a round that one `srun` starts."""

    def __init__(self, scheduler: Scheduler, job: str, folder: Path) -> None:
        super().__init__()
        self._scheduler, self._job, self._folder = scheduler, job, folder

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all ranks: `srun` passes on not all of them."""
        if step := self._scheduler.step(self._job, self._folder.name):
            self._scheduler.signal(step, number)

    def killed(self) -> Killed | None:
        """Which rank was ended by a signal, as `srun` tells."""
        return killed_of(_errors(self._folder))

    def ended(self) -> str:
        """How `srun` ended."""
        return f"`srun` ended with status {self.processes[0].returncode}"

    def end(self) -> None:
        """End the ranks on all nodes, then `srun`."""
        if any(process.poll() is None for process in self.processes):
            self.signal(signal.SIGKILL)
            for process in self.processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_STACKS_S)
        super().end()
