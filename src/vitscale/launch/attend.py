"""Waiting for the ranks of a round, whoever starts them: heartbeats, time limits, why they ended, the end of all."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vitscale.config.study import LaunchSection
from vitscale.errors import Interrupted
from vitscale.launch.outcome import RoundEnd, Watch
from vitscale.launch.processes import Command, Ranks, named, poll_s
from vitscale.records.round import ROUND, Beat, Failure, Round, read_failures, read_heartbeats
from vitscale.records.schema import Status
from vitscale.records.writer import make_folder, write_whole

_LAST_WORDS_S = 1.0

_ANSWER = re.compile(rb"rank (\d+) has begun (\d+) collectives")
"""Of `worker/hang.py`."""
_UNSEEN = re.compile(rb"host (\S+) does not see the results folder")
"""Of `worker/__main__.py`, through the starter's own connection."""
SHARED = "`--out` on a file system that all hosts share, at one path"
_NAMED = 4
_CUT_OFF = "has not answered"
_STARTING = ("import", "setup")


def attend(
    ranks: Ranks, commands: Iterable[Command], results: Path, round_: Round, limits: LaunchSection, watch: Watch
) -> RoundEnd:
    """Start the ranks of a round by these commands, and wait for their end."""
    folder = write_round(results, round_)
    before = ranks.oom_kills()
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
    if end.status == "failed" and "SIGKILL" in (end.reason or "") and ranks.oom_kills() > before:
        return RoundEnd("oom", f"{end.reason}, by the kernel, for want of host memory")
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
        beats = read_heartbeats(folder, round_.nodes, round_.world_size)
        for rank, beat in enumerate(beats):
            if reason := patience[rank].exceeded(beat):
                ranks.signal(signal.SIGQUIT)
                time.sleep(0.5)
                where = f"stacks of all ranks: rounds/{round_.name}/stderr.log"
                return RoundEnd("timeout", f"{_furthest_behind(beats, _begun(folder))} {reason}; {where}")
        seen = [beat for beat in beats if beat]
        if len(seen) == round_.world_size:
            watch(min(seen, key=lambda beat: (beat.entry, beat.step)))
        time.sleep(poll_s(round_.world_size))


def _begun(folder: Path) -> dict[int, int]:
    """Rank -> collectives that it has begun, of those that said so when they were asked for their stacks."""
    return {int(rank): int(count) for rank, count in _ANSWER.findall(_said(folder))}


def _said(folder: Path) -> bytes:
    path = folder / "stderr.log"
    return path.read_bytes() if path.is_file() else b""


def _furthest_behind(beats: Sequence[Beat | None], begun: Mapping[int, int]) -> str:
    """The ranks that the others wait for: of those in the earliest step the ones that began the fewest collectives."""
    places = [(beat.entry, beat.step) if beat else (-1, 0) for beat in beats]
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
        starting = beat is None or beat.phase in _STARTING or beat.step == 0
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
    if end := ranks.outcome():
        return end
    if hosts := sorted({host.decode(errors="replace") for host in _UNSEEN.findall(_said(folder))}):
        listed = ", ".join(f"`{host}`" for host in hosts[:_NAMED]) + (" and others" if len(hosts) > _NAMED else "")
        return RoundEnd("failed", f"host {listed} does not see the results folder", "setup", SHARED)
    failures = read_failures(folder, round_.world_size)
    # The first cause: other ranks then fail in a collective with a lost connection.
    for kind in ("oom", "diverged", "checkpoint"):
        for failure in failures:
            if failure.kind == kind:
                status: Status = "oom" if kind == "oom" else "failed"
                who = named(failure.rank, ranks.host(failure.rank) if kind == "oom" else None)
                return RoundEnd(status, f"{who}: {failure.message}", kind)
    # What a host lacks ends the study, and the ranks beside it are killed.
    if not any(one.kind == "setup" for one in failures) and (killed := ranks.killed()):
        beats = dict(enumerate(read_heartbeats(folder, round_.nodes, round_.world_size)))
        told = f"{named(killed.rank, killed.host)} was ended by {killed.signal} {_when(beats.get(killed.rank))}"
        return RoundEnd("failed", told)
    if failures:
        first = _first(failures)
        meant = "setup" if first.kind == "setup" else None
        return RoundEnd("failed", f"rank {first.rank}: {first.message}", meant, hint=first.hint)
    return RoundEnd("failed", f"{ranks.ended()}; see rounds/{round_.name}/stderr.log")


def _first(failures: Sequence[Failure]) -> Failure:
    """The failure that tells most. Ranks on both sides of a cut name the other: then what most of them say."""
    first = min(failures, key=lambda failure: (failure.kind != "setup", _of_another(failure.message)))
    if _CUT_OFF not in first.message:
        return first
    cut_off = [failure for failure in failures if _CUT_OFF in failure.message]
    said = Counter(failure.message for failure in cut_off)
    return max(cut_off, key=lambda failure: said[failure.message])


def _of_another(told: str) -> bool:
    """Whether it is what the end of another rank does to this one. That a connection timed out is not."""
    return "onnection" in told and not (_CUT_OFF in told and "timed out" in told)


def _when(beat: Beat | None) -> str:
    if beat is not None and beat.phase == "done":
        return "after its last step"
    if beat is None or beat.step == 0 or beat.phase in _STARTING:
        return "before its first step"
    return f"after step {beat.step} ({beat.phase})"


def _ask_to_stop(ranks: Ranks, grace_s: float) -> None:
    """Let ranks that train write a checkpoint; a second signal to this process ends the patience."""
    ranks.signal(signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while time.monotonic() < deadline and None in (codes := ranks.codes()):
        time.sleep(poll_s(len(codes)))


def scrub(folder: Path) -> None:
    """Take the home folder's path out of the logs, and the meeting file away."""
    home = os.fsencode(Path.home())
    for name in ("stdout.log", "stderr.log"):
        path = folder / name
        if len(home) > 1 and path.exists() and home in (text := path.read_bytes()):
            path.write_bytes(text.replace(home, b"~"))
    (folder / "store").unlink(missing_ok=True)
