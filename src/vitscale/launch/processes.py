"""The processes of a round: starting them, reaching the ranks among them, ending them with all that they started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

import psutil

from vitscale.launch.outcome import RoundEnd

_WAIT_S = 1.0

Process = subprocess.Popen[bytes]


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
    """The ranks of a round, where this process starts each of them."""

    def __init__(self) -> None:
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

    def killed(self) -> str | None:
        """Which rank was ended by which signal, or None where none was."""
        for rank, code in enumerate(self.codes()):
            if (code or 0) < 0:
                return f"rank {rank} was ended by {signal.Signals(-(code or 0)).name}"
        return None

    def ended(self) -> str:
        """Which rank ended with another status than 0."""
        rank, code = next((rank, code) for rank, code in enumerate(self.codes()) if code)
        return f"rank {rank} ended with status {code}"

    def end(self) -> None:
        """End what is left."""
        end_sessions(self.processes)


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
