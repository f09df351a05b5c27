"""Waiting for the ranks of a round, whoever starts them: heartbeats, time limits, why they ended, the end of all."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitscale.config.study import LaunchSection
from vitscale.errors import Interrupted
from vitscale.launch.outcome import RoundEnd, Watch
from vitscale.launch.processes import Command, Ranks
from vitscale.records.round import ROUND, Beat, Round, read_failures, read_heartbeat
from vitscale.records.schema import Status
from vitscale.records.writer import make_folder, write_whole

_POLL_S = 0.1
_LAST_WORDS_S = 1.0

_ANSWER = re.compile(rb"rank (\d+) has begun (\d+) collectives")
"""Of `worker/hang.py`."""
_OOM_EVENTS = (Path("/sys/fs/cgroup/memory.events"), Path("/sys/fs/cgroup/memory/memory.oom_control"))


def attend(
    ranks: Ranks, commands: Iterable[Command], results: Path, round_: Round, limits: LaunchSection, watch: Watch
) -> RoundEnd:
    """Start the ranks of a round by these commands, and wait for their end."""
    folder = write_round(results, round_)
    before = _oom_kills()
    try:
        for command in commands:
            ranks.start(command, results, folder)
        end = watched(ranks, folder, round_, limits, watch)
    except (KeyboardInterrupt, Interrupted):
        if any(entry.checkpoints for entry in round_.entries):
            _ask_to_stop(ranks, limits.grace_s)
        raise
    finally:
        ranks.end()
        scrub(folder)
    if end.status == "failed" and "SIGKILL" in (end.reason or "") and _oom_kills() > before:
        return RoundEnd("oom", "the kernel ended a rank for want of host memory")
    return end


def write_round(results: Path, round_: Round) -> Path:
    """Write what the ranks read; the round's folder."""
    folder = make_folder(results / "rounds" / round_.name)
    write_whole(folder / ROUND, (round_.model_dump_json(indent=1) + "\n").encode())
    return folder


def watched(ranks: Ranks, folder: Path, round_: Round, limits: LaunchSection, watch: Watch) -> RoundEnd:
    """Wait for the end of ranks that have been started."""
    patience = [_Patience(limits) for _ in range(round_.world_size)]
    while True:
        codes = ranks.codes()
        if any(codes):
            return _explained(ranks, folder, round_)
        if all(code == 0 for code in codes):
            return RoundEnd("ok")
        beats = [read_heartbeat(folder, rank) for rank in range(round_.world_size)]
        for rank, beat in enumerate(beats):
            if reason := patience[rank].exceeded(beat[0] if beat else None):
                ranks.signal(signal.SIGQUIT)
                time.sleep(0.5)
                where = f"stacks of all ranks: rounds/{round_.name}/stderr.log"
                return RoundEnd("timeout", f"{_furthest_behind(beats, _begun(folder))} {reason}; {where}")
        seen = [beat[0] for beat in beats if beat]
        if len(seen) == round_.world_size:
            watch(min(seen, key=lambda beat: (beat.entry, beat.step)))
        time.sleep(_POLL_S)


def _begun(folder: Path) -> dict[int, int]:
    """Rank -> collectives that it has begun, of those that said so when they were asked for their stacks."""
    path = folder / "stderr.log"
    text = path.read_bytes() if path.is_file() else b""
    return {int(rank): int(count) for rank, count in _ANSWER.findall(text)}


def _furthest_behind(beats: Sequence[tuple[Beat, float] | None], begun: Mapping[int, int]) -> str:
    """The ranks that the others wait for: of those in the earliest step the ones that began the fewest collectives."""
    places = [(beat[0].entry, beat[0].step) if beat else (-1, 0) for beat in beats]
    earliest = [rank for rank, place in enumerate(places) if place == min(places)]
    told = begun if begun.keys() >= {*earliest} else dict.fromkeys(earliest, 0)
    fewest = min(told[rank] for rank in earliest)
    behind = [str(rank) for rank in earliest if told[rank] == fewest]
    named = f"rank {behind[0]}" if len(behind) == 1 else f"ranks {', '.join(behind)}"
    unheard = len(behind) < len(beats) and min(places) == (-1, 0)
    return f"{named} left no word in the results folder, which all hosts have to share, and" if unheard else named


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


def _explained(ranks: Ranks, folder: Path, round_: Round) -> RoundEnd:
    """Why a rank ended: what it left behind, else its exit status."""
    deadline = time.monotonic() + _LAST_WORDS_S
    while time.monotonic() < deadline and not all(ranks.codes()):
        time.sleep(0.05)
    if told := ranks.outcome():
        return told
    failures = read_failures(folder, round_.world_size)
    # The first cause: other ranks then fail in a collective with a lost connection.
    for kind in ("oom", "diverged", "checkpoint"):
        for failure in failures:
            if failure.kind == kind:
                status: Status = "oom" if kind == "oom" else "failed"
                return RoundEnd(status, f"rank {failure.rank}: {failure.message}", kind)
    if killed := ranks.killed():
        return RoundEnd("failed", killed)
    if failures:
        first = min(failures, key=lambda failure: (failure.kind != "setup", "onnection" in failure.message))
        meant = "setup" if first.kind == "setup" else None
        return RoundEnd("failed", f"rank {first.rank}: {first.message}", meant, hint=first.hint)
    return RoundEnd("failed", f"{ranks.ended()}; see rounds/{round_.name}/stderr.log")


def _ask_to_stop(ranks: Ranks, grace_s: float) -> None:
    """Let ranks that train write a checkpoint; a second signal to this process ends the patience."""
    ranks.signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and None in ranks.codes():
        time.sleep(_POLL_S)


def scrub(folder: Path) -> None:
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
