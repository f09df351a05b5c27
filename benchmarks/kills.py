"""The soak: a small `vitscale run quick` is killed ten times at random moments and restarted by the same command.

SIGKILL goes to the tool's own process or to one random rank. After each: no process of the study is left after 5 s, and
what was finished is unchanged to the byte. At the end every run has its launches, and the analysis is what an
independent script finds. The seed fixes the moments and the victims, not what they meet.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks import agreement
from benchmarks.figure import VITSCALE, Failed, Figure, say, shown

SEED = 20260101
ORPHANS_END_S = 5.0
LAUNCHES = 3
SETTINGS = [
    f"measure.launches={LAUNCHES}",
    "measure.warmup_steps=1",
    "measure.steps=6",
    "global_batch=16",
    "micro_batch=8",
]
COMMAND = ["vitscale", "run", "quick", *SETTINGS]
LATEST_S = 15.0
MOST_STARTS = 60


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


class Soak:
    """Results folders, one after the other, until there have been enough kills."""

    def __init__(self, root: Path, wanted: int) -> None:
        self.root, self.wanted = root, wanted
        self.rng = random.Random(SEED)
        self.kills: list[Kill] = []
        self.starts = 0
        self.agreements: list[agreement.Agreement] = []
        self.short_of = 0
        """Runs with fewer launches than asked for, in folders that are done."""
        self.damaged = 0
        """Launches that were finished once and were another thing when their study was done."""

    def run(self) -> None:
        """Kill and restart; the last folder is carried to its end."""
        number = 0
        while len(self.kills) < self.wanted:
            folder = self.root / f"study{number}"
            number += 1
            once_finished: dict[Path, str] = {}
            while self._start(folder, once_finished) != 0:
                if self.starts >= MOST_STARTS:
                    raise Failed(f"not done after {self.starts} starts: {_log(self.root)}")
            now = finished(folder)
            self.damaged += sum(now.get(path) != digest for path, digest in once_finished.items())
            self.short_of += _short_of(folder)
            self.agreements.append(agreement.compare(folder))

    def _start(self, folder: Path, once_finished: dict[Path, str]) -> int:
        """The command once, and kills until it ends; its exit status."""
        self.starts += 1
        with (self.root / "log").open("ab") as log:
            parent = psutil.Popen(
                [VITSCALE, *COMMAND[1:], "--out", str(folder)],
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            while len(self.kills) < self.wanted and parent.poll() is None:
                self._strike(parent, folder, once_finished)
            return int(parent.wait(timeout=600))
        finally:
            if parent.poll() is None:
                parent.kill()
                parent.wait()

    def _strike(self, parent: psutil.Popen, folder: Path, once_finished: dict[Path, str]) -> None:
        """Wait a random time, kill a random victim, and look at what is left; nothing if the command ends before."""
        after_s, at_parent = self.rng.uniform(0.3, LATEST_S), self.rng.random() < 0.5
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
        doomed = _descendants(parent) if at_parent else [one for rank in ranks for one in (rank, *_descendants(rank))]
        victim.kill()
        if at_parent:
            parent.wait()
        left, gone_s = _wait_gone(doomed, folder if at_parent else None)
        now = finished(folder)
        changed = sum(now.get(path) != digest for path, digest in before.items())
        self.kills.append(Kill(after_s, name, meanwhile, len(before), changed, left, gone_s))
        say(f"  kill {len(self.kills)} of {self.wanted}: {name}, {meanwhile}")


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


def _descendants(process: psutil.Process) -> list[psutil.Process]:
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
    return sorted((one for one in children if _alive(one) and _is_rank(one)), key=lambda one: one.create_time())


def _is_rank(process: psutil.Process) -> bool:
    try:
        return "vitscale.worker" in process.cmdline()
    except psutil.Error:
        return False


def _alive(process: psutil.Process) -> bool:
    """A zombie has ended: whoever inherited it has not asked for its status yet."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _wait_gone(doomed: list[psutil.Process], folder: Path | None) -> tuple[int, float | None]:
    """How many of these, and of all that work in `folder` (ranks do), are there after 5 s, and when none was."""
    began = time.monotonic()
    while True:
        left = {one.pid for one in doomed if _alive(one)} | (_working_in(folder) if folder else set())
        passed_s = time.monotonic() - began
        if not left:
            return 0, passed_s
        if passed_s > ORPHANS_END_S:
            return len(left), None
        time.sleep(0.1)


def _working_in(folder: Path) -> set[int]:
    found = set()
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder.resolve() and _alive(process):
                found.add(process.pid)
        except psutil.Error:
            continue
    return found


def _meanwhile(folder: Path, rank: int) -> str:
    """Where the round in flight was, by a rank's heartbeat."""
    rounds = sorted((folder / "rounds").glob("*"))
    beat = rounds[-1] / f"heartbeat.rank{rank:03d}" if rounds else None
    words = beat.read_text().split() if beat is not None and beat.exists() else []
    return f"round {rounds[-1].name}, {words[1]}, step {words[2]}" if len(words) > 2 else "no rank yet"


def _short_of(folder: Path) -> int:
    """Runs of the plan with fewer launches that are `ok` than asked for."""
    planned = [run["run_id"] for run in json.loads((folder / "plan.json").read_text())["runs"]]
    missing = 0
    for run_id in planned:
        manifests = (folder / "runs" / run_id).glob("launch*/manifest.json")
        missing += sum(json.loads(path.read_text())["status"] == "ok" for path in manifests) < LAUNCHES
    return missing


def _log(root: Path) -> str:
    return (root / "log").read_text()[-2000:]


def measure(short: bool) -> list[Figure]:
    """Ten kills, and their table."""
    with tempfile.TemporaryDirectory() as name:
        soak = Soak(Path(name), 3 if short else 10)
        soak.run()
    _print(soak.kills)
    command = shown(COMMAND)
    kills = f"kills: {len(soak.kills)}, starts: {soak.starts}, studies: {len(soak.agreements)}"
    orphans = sum(one.left for one in soak.kills)
    slowest = max((one.gone_s for one in soak.kills if one.gone_s is not None), default=None)
    slowest_text = "n/a" if slowest is None else f"last one gone after at most {slowest:.1f} s"
    changed = sum(one.changed for one in soak.kills) + soak.damaged
    return [
        Figure(
            f"processes left {ORPHANS_END_S:.0f} s after a kill",
            str(orphans),
            kills,
            "0",
            not orphans,
            command,
            slowest_text,
        ),
        Figure("finished launches that a kill changed", str(changed), kills, "0", not changed, command),
        Figure(
            "runs without all their launches at the end", str(soak.short_of), kills, "0", not soak.short_of, command
        ),
        agreement.together(soak.agreements).figure(
            "figures after the kills that an independent script finds too", command
        ),
    ]


def _print(kills: list[Kill]) -> None:
    print("| kill | after s | victim | meanwhile | finished launches | changed | processes left | all gone after s |")
    print("|---|---|---|---|---|---|---|---|")
    for number, one in enumerate(kills, start=1):
        gone = "not" if one.gone_s is None else f"{one.gone_s:.1f}"
        cells = (number, f"{one.after_s:.1f}", one.victim, one.meanwhile, one.finished, one.changed, one.left, gone)
        print(f"| {' | '.join(str(cell) for cell in cells)} |")
    print(flush=True)
