"""The processes of a round: starting them, reaching the ranks among them, ending them with all that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import psutil

from vitscale.hardware.oom_kills import oom_kills
from vitscale.launch.outcome import Killed, RoundEnd

_WAIT_S = 1.0
_STOPS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
_POLL_S = 0.1
_LOOKS_PER_S = 5000
"""Most files of a shared folder that are looked at in a second, by one process for all ranks or by all ranks."""

Process = subprocess.Popen[bytes]


def poll_s(ranks: int, least_s: float = _POLL_S) -> float:
    """How long to wait from one look at so many ranks, or of so many, to the next."""
    return max(least_s, ranks / _LOOKS_PER_S)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Put off the signals that stop this process until what is within is done. In the main thread only.

    Blocked, for what is started within; and heard by another handler, since threads of libraries do not block them.
    """
    came: list[int] = []
    handlers = {number: signal.signal(number, lambda number, _frame: came.append(number)) for number in _STOPS}
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        for stop, handler in handlers.items():
            signal.signal(stop, handler)
        for number in dict.fromkeys(came):
            signal.raise_signal(number)


class Command(NamedTuple):
    """What is started."""

    words: Sequence[str]
    environ: Mapping[str, str]


def begin(command: Command, folder: Path, out: IO[bytes] | int, err: IO[bytes] | int) -> Process:
    """Start a process that works in a folder, leads a session, and holds our end of a pipe as standard input."""
    return subprocess.Popen(
        command.words,
        cwd=folder,
        env=command.environ,
        stdin=subprocess.PIPE,
        stdout=out,
        stderr=err,
        start_new_session=True,
    )


class Ranks:
    """The ranks of a round, where this process starts each of them.

    Args:
        hosts: that of each rank, in words; none where there is one host.
    """

    def __init__(self, hosts: Sequence[str] = ()) -> None:
        self._host_names = hosts
        self.processes: list[Process] = []

    def start(self, command: Command, results: Path, folder: Path) -> None:
        """Start a process of a rank's; what it says is kept beside the round."""
        with (folder / "stdout.log").open("ab") as out, (folder / "stderr.log").open("ab") as err:
            self.processes.append(begin(command, results, out, err))

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the ranks on this host."""
        for rank in self.processes:
            with contextlib.suppress(ProcessLookupError):
                rank.send_signal(number)

    def codes(self) -> list[int | None]:
        """Exit status of each process, None of those that work."""
        return [process.poll() for process in self.processes]

    def outcome(self) -> RoundEnd | None:
        """How the round ended, where whoever started the ranks knows better than they; else None."""
        return None

    def host(self, rank: int) -> str | None:
        """The host of a rank in words, or None where there is one host."""
        return self._host_names[rank] if self._host_names else None

    def killed(self) -> Killed | None:
        """Which rank was ended by which signal, or None where none was."""
        for rank, code in enumerate(self.codes()):
            if (code or 0) < 0:
                return Killed(rank, signal.Signals(-(code or 0)).name, self.host(rank))
        return None

    def oom_kills(self) -> int:
        """How often the kernel has ended a process for want of memory, on hosts where this can be seen."""
        return oom_kills()

    def ended(self) -> str:
        """Which rank ended with another status than 0."""
        rank, code = next((rank, code) for rank, code in enumerate(self.codes()) if code)
        return f"{named(rank, self.host(rank))} ended with status {code}"

    def end(self) -> None:
        """End what is left."""
        end_sessions(self.processes)


def named(rank: int, host: str | None) -> str:
    """A rank with its host."""
    return f"rank {rank} on {host}" if host else f"rank {rank}"


def end_sessions(leaders: Sequence[Process]) -> None:
    """End processes with all their children: the whole of a session, as compilers have process groups of their own."""
    for leader in leaders:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader.pid, signal.SIGKILL)
    sessions = {leader.pid for leader in leaders}  # no other process gets such a number while one is in the session
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(pid) in sessions and pid not in sessions:
                os.kill(pid, signal.SIGKILL)
    for leader in leaders:
        leader.wait()
        if leader.stdin:
            leader.stdin.close()


def end_leftovers(results: Path) -> None:
    """End ranks of an earlier start that still work in a results folder: its tool was killed a moment ago."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if "vitscale.worker" in process.cmdline() and Path(process.cwd()) == results.resolve():
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(_WAIT_S)
