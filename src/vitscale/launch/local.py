"""Ranks on this host: one process each, watched by heartbeats, ended as a whole.

Every rank leads a session of its own and holds our end of a pipe as standard input: when this process is gone, however
it went, the pipe closes and the rank ends itself and its children.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import psutil

from vitscale.config.study import LaunchSection
from vitscale.errors import Interrupted
from vitscale.launch.outcome import RoundEnd, Watch
from vitscale.records.round import ROUND, Beat, Round, read_failures, read_heartbeat
from vitscale.records.schema import Status
from vitscale.records.writer import make_folder, write_whole

_POLL_S = 0.1
_LAST_WORDS_S = 1.0
GRACE_S = 60.0
"""Longest wait for ranks that train to write a checkpoint once they are asked to stop."""

_INTERFACES = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_OOM_EVENTS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))


class Place(NamedTuple):
    """Where a rank is started."""

    prefix: tuple[str, ...]
    """What its command begins with."""
    interface: str
    """Network interface by which it reaches the others."""


class Local:
    """Launcher for one host.

    Args:
        data_root: folder of the prepared data sets.
        data_path: the image folder that `imagefolder` was prepared from, or None.
        limits: the study's `[launch]`.
        environ: environment of the ranks, `os.environ` if None.
        init: file of the weights that training starts from, or None.
    """

    def __init__(
        self,
        data_root: Path,
        data_path: Path | None,
        limits: LaunchSection,
        environ: Mapping[str, str] | None = None,
        init: Path | None = None,
    ) -> None:
        self._limits, self._init = limits, init
        self._environ = {**(os.environ if environ is None else environ), "HF_HUB_OFFLINE": "1"}
        self._environ["VITSCALE_DATA"] = str(data_root.resolve())
        if data_path is not None:
            self._environ["VITSCALE_DATA_PATH"] = str(data_path.resolve())

    def run(self, results: Path, round_: Round, watch: Watch) -> RoundEnd:
        """Serve a round."""
        folder = make_folder(results / "rounds" / round_.name)
        write_whole(folder / ROUND, (round_.model_dump_json(indent=1) + "\n").encode())
        before = _oom_kills()
        ranks: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(round_.world_size):
                # One by one: a start that fails must still end the ranks before it.
                ranks.append(self._start(results, folder, round_, rank))  # noqa: PERF401
            end = self._watch(folder, round_, ranks, watch)
        except (KeyboardInterrupt, Interrupted):
            if any(entry.checkpoints for entry in round_.entries):
                _ask_to_stop(ranks)
            raise
        finally:
            _end(ranks)
            _scrub(folder)
        if end.status == "failed" and "SIGKILL" in (end.reason or "") and _oom_kills() > before:
            return RoundEnd("oom", "the kernel ended a rank for want of host memory")
        return end

    def place(self, node: int) -> Place:
        """Where ranks of a node are started."""
        assert node == 0
        return Place((), "lo")

    def _start(self, results: Path, folder: Path, round_: Round, rank: int) -> subprocess.Popen[bytes]:
        node, local_rank = divmod(rank, round_.ranks_per_node)
        place = self.place(node)
        own = {
            "RANK": rank,
            "LOCAL_RANK": local_rank,
            "WORLD_SIZE": round_.world_size,
            "LOCAL_WORLD_SIZE": round_.ranks_per_node,
            "VITSCALE_STORE": (folder / "store").resolve(),
            **dict.fromkeys(_INTERFACES, place.interface),
        }
        threads = round_.entries[0].spec.get("threads_per_rank")
        own |= {"OMP_NUM_THREADS": threads} if threads else {}
        own |= {"VITSCALE_INIT": self._init.resolve()} if self._init else {}
        with (folder / "stdout.log").open("ab") as out, (folder / "stderr.log").open("ab") as err:
            return subprocess.Popen(
                # -P: the results folder, where the rank works, is not searched for modules.
                [*place.prefix, sys.executable, "-P", "-m", "vitscale.worker", f"rounds/{round_.name}/{ROUND}"],
                cwd=results,
                env=self._environ | {key: str(value) for key, value in own.items()},
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def _watch(self, folder: Path, round_: Round, ranks: list[subprocess.Popen[bytes]], watch: Watch) -> RoundEnd:
        patience = [_Patience(self._limits) for _ in ranks]
        while True:
            codes = [rank.poll() for rank in ranks]
            if any(codes):
                return _explained(folder, round_, ranks)
            if all(code == 0 for code in codes):
                return RoundEnd("ok")
            beats = [read_heartbeat(folder, rank) for rank in range(len(ranks))]
            for rank, beat in enumerate(beats):
                reason = patience[rank].exceeded(beat[0] if beat else None)
                if reason and codes[rank] is None:
                    _save_stacks(ranks)
                    where = f"stacks of all ranks: rounds/{round_.name}/stderr.log"
                    return RoundEnd("timeout", f"{_furthest_behind(beats)} {reason}; {where}")
            seen = [beat[0] for beat in beats if beat]
            if len(seen) == len(ranks):
                watch(min(seen, key=lambda beat: (beat.entry, beat.step)))
            time.sleep(_POLL_S)


def _furthest_behind(beats: Sequence[tuple[Beat, float] | None]) -> str:
    """The ranks that the others wait for; a rank that hangs inside a step stands beside those that wait for it."""
    places = [(beat[0].entry, beat[0].step) if beat else (-1, 0) for beat in beats]
    behind = [str(rank) for rank, place in enumerate(places) if place == min(places)]
    return f"rank {behind[0]}" if len(behind) == 1 else f"ranks {', '.join(behind)}"


@dataclass
class _Patience:
    """How long a rank has been where it is."""

    limits: LaunchSection
    _place: tuple[int, str, int] | None = None
    _since: float = field(default_factory=time.monotonic)

    def exceeded(self, beat: Beat | None) -> str | None:
        """Say what took too long, or None."""
        place = (beat.entry, beat.phase, beat.step) if beat else None
        now = time.monotonic()
        if place != self._place:
            self._place, self._since = place, now
        starting = beat is None or beat.phase in ("import", "setup") or beat.step == 0
        limit = self.limits.start_timeout_s if starting else self.limits.step_timeout_s
        if now - self._since <= limit:
            return None
        if starting:
            return f"did not finish a first step within {limit:g} s (launch.start_timeout_s)"
        return f"finished no step for {limit:g} s (launch.step_timeout_s)"


def _explained(folder: Path, round_: Round, ranks: list[subprocess.Popen[bytes]]) -> RoundEnd:
    """Why a rank ended: what it left behind, else its exit status."""
    deadline = time.monotonic() + _LAST_WORDS_S
    while time.monotonic() < deadline and not all(rank.poll() for rank in ranks):
        time.sleep(0.05)
    failures = read_failures(folder, round_.world_size)
    # The first cause: other ranks then fail in a collective with a lost connection.
    for kind in ("oom", "diverged", "checkpoint"):
        for failure in failures:
            if failure.kind == kind:
                status: Status = "oom" if kind == "oom" else "failed"
                return RoundEnd(status, f"rank {failure.rank}: {failure.message}", kind)
    killed = [(rank, process.returncode) for rank, process in enumerate(ranks) if (process.returncode or 0) < 0]
    if killed:
        rank, code = killed[0]
        return RoundEnd("failed", f"rank {rank} was ended by {signal.Signals(-code).name}")
    if failures:
        first = min(failures, key=lambda failure: "onnection" in failure.message)
        return RoundEnd("failed", f"rank {first.rank}: {first.message}")
    rank, code = next((rank, process.returncode) for rank, process in enumerate(ranks) if process.returncode)
    return RoundEnd("failed", f"rank {rank} ended with status {code}; see rounds/{round_.name}/stderr.log")


def _save_stacks(ranks: list[subprocess.Popen[bytes]]) -> None:
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError):
            rank.send_signal(signal.SIGQUIT)
    time.sleep(0.5)


def _ask_to_stop(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Let ranks that train write a checkpoint; a second signal to this process ends the patience."""
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError):
            rank.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline and any(rank.poll() is None for rank in ranks):
        time.sleep(_POLL_S)


def _end(ranks: list[subprocess.Popen[bytes]]) -> None:
    """End every rank with all its children."""
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(rank.pid, signal.SIGKILL)
    for rank in ranks:
        rank.wait()
        if rank.stdin:
            rank.stdin.close()


def end_leftovers(results: Path) -> None:
    """End ranks of an earlier start that still work in a results folder: its tool was killed a moment ago."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError, PermissionError):
            if "vitscale.worker" in process.cmdline() and Path(process.cwd()) == results.resolve():
                os.killpg(process.pid, signal.SIGKILL)
                process.wait(_LAST_WORDS_S)


def _scrub(folder: Path) -> None:
    """Take the home folder's path out of the logs, and the meeting file away."""
    home = os.fsencode(Path.home())
    for name in ("stdout.log", "stderr.log"):
        path = folder / name
        if len(home) > 1 and path.exists() and home in (text := path.read_bytes()):
            path.write_bytes(text.replace(home, b"~"))
    (folder / "store").unlink(missing_ok=True)


def _oom_kills() -> int:
    """How often the kernel has ended a process of this control group for want of memory."""
    for path in _OOM_EVENTS:
        with contextlib.suppress(OSError, ValueError):
            pairs = dict(line.split() for line in path.read_text().splitlines())
            return int(pairs["oom_kill"]) if "oom_kill" in pairs else 0
    return 0
