"""Carrying out a plan: rounds of launches until every run has its figures, going on from whatever is there already."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vitscale import statistics as intervals
from vitscale.config.runspec import RunSpec
from vitscale.config.study import MeasureSection
from vitscale.errors import Interrupted, LeftRunning, SetupError, VitscaleError, WorkerError
from vitscale.hardware.probe import Machine
from vitscale.launch.outcome import Launcher, Queue, RoundEnd
from vitscale.records.launches import LaunchFolder, read_launches
from vitscale.records.round import Entry, Round
from vitscale.records.schema import FINAL, Status
from vitscale.records.writer import MANIFEST
from vitscale.study.follow import Follow, Observer, images_per_s, launch_step_s
from vitscale.study.rounds import bury, close_launch, in_turn, make_round, next_entry, next_round


class Outcome(NamedTuple):
    """What is left when the study ends."""

    missing: tuple[str, ...]
    """run_ids with fewer `ok` launches than asked for and no final outcome."""
    limited: tuple[str, ...] = ()
    """Those of them that a scheduler's time limit ended, with a job to themselves."""

    def error(self, runs: int) -> VitscaleError | None:
        """What to end with, of so many runs; None where nothing is missing."""
        if not self.missing:
            return None
        told = f"{len(self.missing)} of {runs} runs have fewer launches than asked for"
        if self.missing == self.limited:
            ended = f"{told}: their jobs reached the time limit"
            return Interrupted(ended, "a longer launch.time_limit; the same command goes on with what is missing")
        return WorkerError(told, "the findings say why; the same command tries them again")


ATTEMPTS = 2
"""A launch that fails is tried once more before the study goes on without it."""


def execute(
    folder: Path,
    runs: Sequence[RunSpec],
    labels: dict[str, str],
    measure: MeasureSection,
    machine: Machine,
    launcher: Launcher,
    observer: Observer,
) -> Outcome:
    """Measure what is missing in a folder that is `results.opened`.

    Raises:
        ResultsError: the folder cannot be written.
        SetupError: the machines are not what was asked for, which further rounds would only meet again.
        Interrupted: Ctrl-C or SIGTERM; the launch in flight is marked, everything finished stays.
        LeftRunning: the same, and a scheduler goes on with what it has.
    """
    left = launcher.left(folder) if isinstance(launcher, Queue) else []
    bury(folder, {run.run_id: run for run in runs}, left)
    return _Execution(folder, runs, labels, measure, machine, launcher, observer).run(left)


class _Execution:
    def __init__(
        self,
        folder: Path,
        runs: Sequence[RunSpec],
        labels: dict[str, str],
        measure: MeasureSection,
        machine: Machine,
        launcher: Launcher,
        observer: Observer,
    ) -> None:
        self.folder, self.runs, self.labels, self.measure = folder, list(runs), labels, measure
        self.machine, self.launcher, self.observer = machine, launcher, observer
        self.failures: Counter[str] = Counter()
        self.limited: set[str] = set()
        self.cancelled: set[str] = set()
        self.ahead: list[Round] = []
        """Rounds that are handed over and not served yet."""
        self.told: set[str] = set()
        self.began = time.monotonic()
        self.rounds = next_round(folder)
        self._read()

    def _read(self) -> None:
        self.launches: dict[str, list[LaunchFolder]] = {run.run_id: [] for run in self.runs}
        for launch in read_launches(self.folder):
            self.launches.setdefault(launch.run_id, []).append(launch)

    def run(self, left: Sequence[Round]) -> Outcome:
        done = sum(min(self._ok(run), self.measure.launches) for run in self.runs)
        self.observer.started(self.measure.launches * len(self.runs), done)
        if left:
            names = ", ".join(round_.name for round_ in left)
            self.observer.message(f"waiting for what was handed over before: {names}")
        self.ahead = [*left]
        if isinstance(self.launcher, Queue):
            self._serve_ahead(self.launcher)
        self.failures.clear()  # those were an earlier command's
        self.limited.clear()
        self.cancelled.clear()
        turns = itertools.count()
        while wanting := [run for run in self.runs if self._wanting(run)]:
            if isinstance(self.launcher, Queue):
                self._plan_ahead(wanting, turns, all_launches=self.launcher.takes_all)
                self._serve_ahead(self.launcher)
            else:
                for group in in_turn(wanting, next(turns)):
                    self._serve(self._round(group))
        missing = tuple(run.run_id for run in self.runs if not self._settled(run))
        return Outcome(missing, tuple(run_id for run_id in missing if run_id in self.limited))

    def _plan_ahead(self, wanting: list[RunSpec], turns: Iterator[int], *, all_launches: bool) -> None:
        """The rounds of the next turn, or of all until each run has the launches that are asked for."""
        for number in itertools.count(1):
            for group in in_turn(wanting, next(turns)):
                self.ahead.append(self._round(group))
            wanting = [run for run in wanting if self._ok(run) + number < self.measure.launches]
            if not wanting or not all_launches:
                break

    def _serve_ahead(self, queue: Queue) -> None:
        by_id = {run.run_id: run for run in self.runs}
        while self.ahead:
            if told := queue.submit(self.folder, self.ahead):
                self.observer.message(told)
            round_ = self.ahead.pop(0)
            runs = [by_id.get(entry.run_id) for entry in round_.entries]
            if all(run and self._given_up(run) for run in runs):
                queue.withdraw(self.folder, round_)
                self._close_begun(round_, RoundEnd("killed", "not needed: an earlier launch of the run was final"))
            else:
                self._serve(round_)

    def _ok(self, run: RunSpec) -> int:
        return sum(launch.ok for launch in self.launches[run.run_id])

    def _unproven(self, run: RunSpec) -> bool:
        """Whether ways to distribute training are compared, and this run has not been held against plain torch yet."""
        return len({_way(one) for one in self.runs}) > 1 and not self._ok(run)

    def _ended(self, run: RunSpec) -> bool:
        """Whether the run has an outcome that further launches would only repeat."""
        statuses = {launch.manifest.status for launch in self.launches[run.run_id] if launch.manifest}
        return bool(statuses & ({*FINAL} - {"ok"}))

    def _settled(self, run: RunSpec) -> bool:
        return self._ended(run) or self._ok(run) >= self.measure.launches

    def _given_up(self, run: RunSpec) -> bool:
        return self.failures[run.run_id] >= ATTEMPTS or self._ended(run)

    def _wanting(self, run: RunSpec) -> bool:
        if self._given_up(run) or run.run_id in self.cancelled:
            return False
        return not self._settled(run) or self._too_wide(run)

    def _too_wide(self, run: RunSpec) -> bool:
        """Whether the interval asks for one more launch and the budget pays for it."""
        target, budget = self.measure.target_interval, self.measure.budget_s
        ok = [launch for launch in self.launches[run.run_id] if launch.ok]
        if target is None or budget is None or not ok or time.monotonic() - self.began > budget:
            return False
        times = [time_s for launch in ok if (time_s := launch_step_s(launch.path)) is not None]
        if not times:
            return False
        found = intervals.interval(times)
        if found.low is None or found.high is None:
            return True
        return (found.high - found.low) / 2 > target * found.median

    def _round(self, group: Sequence[RunSpec]) -> Round:
        """The next process start, with a launch of each run."""
        given = {entry.run_id: entry.launch for round_ in self.ahead for entry in round_.entries}
        entries = [
            next_entry(
                self.folder,
                run,
                parity=self._unproven(run) and run.run_id not in given,
                after=given.get(run.run_id, -1),
            )
            for run in group
        ]
        self.rounds += 1
        return make_round(self.rounds - 1, group[0], entries, self.machine)

    def _serve(self, round_: Round) -> None:
        """Serve a round, and further ones where a crash cut it short; these without runs that the study dropped."""
        by_id = {run.run_id: run for run in self.runs}
        while True:
            end = self._start(round_)
            unfinished = [entry for entry in round_.entries if not (self.folder / entry.folder / MANIFEST).exists()]
            if not unfinished:
                break
            if end.kind == "setup":
                raise SetupError(end.reason or "the ranks did not meet", end.hint)
            end = end if end.status != "ok" else RoundEnd("failed", "left no record")
            status = self._close(round_, unfinished[0], end)
            if not end.again:
                self.cancelled.update(entry.run_id for entry in unfinished)
                break
            again = unfinished[1:]
            victim = unfinished[0]
            if status not in FINAL and self._again(victim, end, whole_job=victim is round_.entries[0]):
                again.append(victim)
            left = [by_id[entry.run_id] for entry in again if entry.run_id in by_id]
            if not left:
                break
            round_ = self._round(left)
        self._read()

    def _again(self, victim: Entry, end: RoundEnd, *, whole_job: bool) -> bool:
        """Count how a launch ended; whether it is tried once more.

        One that a job's time limit ended is no failure where others had a part of that job; where it had the whole, the
        next job would end it too.
        """
        limit = end.kind == "time_limit"
        if limit and whole_job:
            self.limited.add(victim.run_id)
            self.failures[victim.run_id] += ATTEMPTS
        elif not limit:
            self.failures[victim.run_id] += 1
        return self.failures[victim.run_id] < ATTEMPTS

    def _start(self, round_: Round) -> RoundEnd:
        follow = Follow(self.folder, round_, self.labels, self.observer, self.told)
        try:
            return self.launcher.run(self.folder, round_, follow.beat)
        except LeftRunning:
            raise
        except (KeyboardInterrupt, Interrupted):
            self._close_begun(round_, RoundEnd("killed", "interrupted"))
            raise Interrupted("interrupted", "the same command goes on with what is missing") from None
        finally:
            follow.finish()
            self._read()

    def _close_begun(self, round_: Round, end: RoundEnd) -> None:
        """Close the launch that its ranks were at."""
        for entry in round_.entries:
            if not (self.folder / entry.folder / MANIFEST).exists():
                if (self.folder / entry.folder).exists():
                    self._close(round_, entry, end)
                break

    def _close(self, round_: Round, entry: Entry, end: RoundEnd) -> Status:
        manifest = close_launch(self.folder, entry, round_.name, end)
        pace = images_per_s(self.folder, entry) if manifest.status == "ok" else None
        self.observer.launch_finished(entry.run_id, entry.launch, manifest.status, pace, manifest.reason)
        if manifest.status == "ok":
            self.observer.message(f"its figures stand; {manifest.notes['memory']}")
        return manifest.status


def _way(run: RunSpec) -> tuple[object, ...]:
    """How a run distributes training: whose engine, and what its ranks share and send."""
    beside = run.knobs is not None and run.knobs.overlap_reduce is True
    return run.engine, run.zero_stage, run.sequence_parallel, run.tensor_parallel, beside
