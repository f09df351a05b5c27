"""A command of vitscale that is killed with SIGKILL at random moments and restarted, and what each kill leaves.

The kill goes to the tool's own process or to one random rank. The seed fixes the moments and the victims, not what they
meet.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.figure import VITSCALE, Failed, Figure, say, shown
from vitscale.errors import VitscaleError
from vitscale.hardware.position import position
from vitscale.records.round import read_heartbeats

SEED = 20260101
ORPHANS_END_S = 5.0
STARTS_PER_KILL = 6
"""More starts than this and the command does not get to its end."""


@dataclass(frozen=True)
class Kill:
    """One kill and what was found after it."""

    after_s: float
    """Since the start of the command, or since the kill before it."""
    victim: str
    meanwhile: str
    """Heartbeat of the victim, or of rank 0."""
    finished: int
    """Launches that were finished at that moment."""
    changed: int
    """Of these, how many are not what they were."""
    left: int
    """Processes that should have ended and were there after 5 s."""
    gone_s: float | None


class Killer:
    """Carries results folders to their end through kills.

    Args:
        command: what is typed, `--out` left out.
        root: folder of the results folders and of the command's output.
        wanted: kills in all.
        latest_s: a kill comes at most this long after the one before it.
    """

    def __init__(self, command: Sequence[str], root: Path, wanted: int, latest_s: float) -> None:
        self.command, self.root, self.wanted, self.latest_s = command, root, wanted, latest_s
        self.rng = random.Random(SEED)
        self.kills: list[Kill] = []
        self.starts = 0
        self.damaged = 0
        """Launches that were finished once and were another thing at the end of their command."""

    @property
    def done(self) -> bool:
        """Whether there were as many kills as wanted."""
        return len(self.kills) >= self.wanted

    def carry(self, folder: Path) -> None:
        """Start the command until it ends with 0, killing while kills are wanted.

        Raises:
            Failed: it does not get there.
        """
        once_finished: dict[Path, str] = {}
        while self._start(folder, once_finished) != 0:
            if self.starts >= STARTS_PER_KILL * self.wanted:
                raise Failed(f"not done after {self.starts} starts: {(self.root / 'log').read_text()[-2000:]}")
        now = finished(folder)
        self.damaged += sum(now.get(path) != digest for path, digest in once_finished.items())

    def _start(self, folder: Path, once_finished: dict[Path, str]) -> int:
        """The command once, and kills until it ends; its exit status."""
        self.starts += 1
        with (self.root / "log").open("ab") as log:
            parent = psutil.Popen(
                [VITSCALE, *self.command[1:], "--out", str(folder)],
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            while not self.done and parent.poll() is None:
                self._strike(parent, folder, once_finished)
            return int(parent.wait(timeout=600))
        finally:
            if parent.poll() is None:
                parent.kill()
                parent.wait()

    def _strike(self, parent: psutil.Popen, folder: Path, once_finished: dict[Path, str]) -> None:
        """Wait a random time, kill a random victim, and look at what is left; nothing if the command ends before."""
        after_s, at_parent = self.rng.uniform(0.3, self.latest_s), self.rng.random() < 0.5
        draw = self.rng.random()
        if _ended_within(parent, after_s):
            return
        ranks = _ranks(parent)
        while not at_parent and not ranks:
            if _ended_within(parent, 0.05):
                return
            ranks = _ranks(parent)
        before = finished(folder)
        once_finished.update(before)
        victim = parent if at_parent else ranks[int(draw * len(ranks))]
        name = "vitscale" if at_parent else f"rank {ranks.index(victim)} of {len(ranks)}"
        meanwhile = _meanwhile(folder, 0 if at_parent else ranks.index(victim))
        doomed = descendants(parent) if at_parent else [one for rank in ranks for one in (rank, *descendants(rank))]
        victim.kill()
        if at_parent:
            parent.wait()
        left, gone_s = wait_gone(doomed, folder if at_parent else None)
        now = finished(folder)
        changed = sum(now.get(path) != digest for path, digest in before.items())
        self.kills.append(Kill(after_s, name, meanwhile, len(before), changed, left, gone_s))
        say(f"  kill {len(self.kills)} of {self.wanted}: {name}, {meanwhile}")

    def figures(self, more: str) -> list[Figure]:
        """No process left, no finished launch changed; `more` is told beside the number of kills."""
        kills = f"kills: {len(self.kills)}, starts: {self.starts}, {more}"
        command = shown(self.command)
        orphans = sum(one.left for one in self.kills)
        slowest = max((one.gone_s for one in self.kills if one.gone_s is not None), default=None)
        note = "n/a" if slowest is None else f"last one gone after at most {slowest:.1f} s"
        changed = sum(one.changed for one in self.kills) + self.damaged
        left_name = f"processes left {ORPHANS_END_S:.0f} s after a kill"
        return [
            Figure(left_name, str(orphans), kills, "0", not orphans, command, note),
            Figure("finished launches that a kill changed", str(changed), kills, "0", not changed, command),
        ]

    def print_table(self) -> None:
        """One row for each kill."""
        print("| kill | after s | victim | meanwhile | finished launches | changed | left | all gone after s |")
        print("|---|---|---|---|---|---|---|---|")
        for number, one in enumerate(self.kills, start=1):
            gone = "not" if one.gone_s is None else f"{one.gone_s:.1f}"
            cells = (number, f"{one.after_s:.1f}", one.victim, one.meanwhile, one.finished, one.changed, one.left, gone)
            print(f"| {' | '.join(str(cell) for cell in cells)} |")
        print(flush=True)


def finished(folder: Path) -> dict[Path, str]:
    """Every launch folder with a manifest, by a digest of the names and bytes of all its files."""
    found = {}
    for manifest in folder.glob("runs/*/launch*/manifest.json"):
        digest = hashlib.sha256()
        for path in sorted(manifest.parent.iterdir()):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        found[manifest.parent] = digest.hexdigest()
    return found


def _ended_within(process: psutil.Popen, limit_s: float) -> bool:
    try:
        process.wait(timeout=limit_s)
    except psutil.TimeoutExpired:
        return False
    return True


def descendants(process: psutil.Process) -> list[psutil.Process]:
    """Children, their children and so on; none of a process that is gone."""
    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _ranks(parent: psutil.Process) -> list[psutil.Process]:
    """The ranks of the round in flight, in their order."""
    try:
        children = parent.children()
    except psutil.NoSuchProcess:
        return []
    return sorted((one for one in children if alive(one) and _is_rank(one)), key=lambda one: one.create_time())


def _is_rank(process: psutil.Process) -> bool:
    try:
        return "vitscale.worker" in process.cmdline()
    except psutil.Error:
        return False


def alive(process: psutil.Process) -> bool:
    """A zombie has ended: whoever inherited it has not asked for its status yet."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def wait_gone(doomed: list[psutil.Process], folder: Path | None) -> tuple[int, float | None]:
    """How many of these, and of all that work in `folder` (ranks do), are there after 5 s, and when none was."""
    began = time.monotonic()
    while True:
        left = {one.pid for one in doomed if alive(one)} | (working_in(folder) if folder else set())
        passed_s = time.monotonic() - began
        if not left:
            return 0, passed_s
        if passed_s > ORPHANS_END_S:
            return len(left), None
        time.sleep(0.1)


def working_in(folder: Path) -> set[int]:
    """Processes whose working folder it is."""
    found = set()
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder.resolve() and alive(process):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def ranks_in(folder: Path) -> dict[int, psutil.Process]:
    """The ranks that work in a results folder, by number: of all hosts that are laid out on this machine."""
    found = {}
    for pid in working_in(folder):
        try:
            process = psutil.Process(pid)
            if process.cmdline()[2:4] == ["-m", "vitscale.worker"]:
                found[position(process.environ()).rank] = process
        except (psutil.Error, VitscaleError):
            continue
    return dict(sorted(found.items()))


def agents_of(ranks: Iterable[psutil.Process]) -> list[psutil.Process]:
    """The agents of hosts that started them: sshd starts agents in the home folder, so that only ranks tell whose."""
    found = {}
    for rank in ranks:
        with contextlib.suppress(psutil.Error):
            parent = rank.parent()
            if parent is not None and "vitscale.launch.agent" in parent.cmdline():
                found[parent.pid] = parent
    return [*found.values()]


def _meanwhile(folder: Path, rank: int) -> str:
    """Where the round in flight was, by a rank's heartbeat."""
    rounds = sorted((folder / "rounds").glob("*"))
    found = read_heartbeats(rounds[-1], rank + 1, rank + 1)[rank] if rounds else None
    return f"round {rounds[-1].name}, {found.phase}, step {found.step}" if found else "no rank yet"
