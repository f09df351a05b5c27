"""Carrying out a plan: rounds of launches until every run has its figures, going on from whatever is there already."""

from __future__ import annotations

import datetime
import itertools
import json
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from vitscale import statistics as intervals
from vitscale.config.runspec import RunSpec
from vitscale.config.study import MeasureSection
from vitscale.errors import Interrupted
from vitscale.hardware.probe import Machine
from vitscale.hardware.topology import core_sets, sibling_groups
from vitscale.launch.outcome import Launcher, RoundEnd
from vitscale.records.launches import LaunchFolder, read_launches
from vitscale.records.round import Beat, Entry, Round
from vitscale.records.schema import FINAL, Layout, Manifest, Status
from vitscale.records.writer import MANIFEST, RUN, make_folder, write_json, write_manifest


class Observer(Protocol):
    """Who watches a study being carried out."""

    def started(self, total_launches: int, done: int) -> None:
        """So many launches are planned, and so many are there already."""

    def launch_started(self, run_id: str, label: str, launch: int) -> None:
        """A launch is being set up."""

    def progress(
        self, run_id: str, step: int, steps: int, phase: str, loss: float | None, images_per_s: float | None
    ) -> None:
        """A launch is in `phase`; `steps` is 0 while their number is not known."""

    def launch_finished(
        self, run_id: str, launch: int, status: str, images_per_s: float | None, reason: str | None
    ) -> None:
        """A launch has ended, with its images per second where it is `ok`, else with the reason."""


class Outcome(NamedTuple):
    """What is left when the study ends."""

    missing: tuple[str, ...]
    """run_ids with fewer `ok` launches than asked for and no final outcome."""


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
        Interrupted: Ctrl-C or SIGTERM; the launch in flight is marked, everything finished stays.
    """
    _bury(folder, {run.run_id: run for run in runs})
    return _Execution(folder, runs, labels, measure, machine, launcher, observer).run()


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
        self.began = time.monotonic()
        self.rounds = _next_round(folder)
        self._read()

    def _read(self) -> None:
        self.launches: dict[str, list[LaunchFolder]] = {run.run_id: [] for run in self.runs}
        for launch in read_launches(self.folder):
            self.launches.setdefault(launch.run_id, []).append(launch)

    def run(self) -> Outcome:
        done = sum(min(self._ok(run), self.measure.launches) for run in self.runs)
        self.observer.started(self.measure.launches * len(self.runs), done)
        for turn in itertools.count():
            wanting = [run for run in self.runs if self._wanting(run)]
            if not wanting:
                break
            # Drift (heat, neighbours) must not read as scaling: the order of world sizes alternates.
            groups = _by_process_start(wanting)
            for group in groups if turn % 2 == 0 else groups[::-1]:
                shift = turn % len(group)
                self._serve(group[shift:] + group[:shift])
        return Outcome(tuple(run.run_id for run in self.runs if not self._settled(run)))

    def _ok(self, run: RunSpec) -> int:
        return sum(launch.ok for launch in self.launches[run.run_id])

    def _settled(self, run: RunSpec) -> bool:
        statuses = {launch.manifest.status for launch in self.launches[run.run_id] if launch.manifest}
        return bool(statuses & ({*FINAL} - {"ok"})) or self._ok(run) >= self.measure.launches

    def _wanting(self, run: RunSpec) -> bool:
        if self.failures[run.run_id] >= ATTEMPTS:
            return False
        return not self._settled(run) or self._too_wide(run)

    def _too_wide(self, run: RunSpec) -> bool:
        """Whether the interval asks for one more launch and the budget pays for it."""
        target, budget = self.measure.target_interval, self.measure.budget_s
        ok = [launch for launch in self.launches[run.run_id] if launch.ok]
        if target is None or budget is None or not ok or time.monotonic() - self.began > budget:
            return False
        found = intervals.interval([launch_step_s(launch.path) for launch in ok])
        if found.low is None or found.high is None:
            return True
        return (found.high - found.low) / 2 > target * found.median

    def _serve(self, group: list[RunSpec]) -> None:
        """One launch of each run: one round, and further ones where a crash cut it short."""
        left = list(group)
        while left:
            entries = [self._entry(run) for run in left]
            round_ = self._round(left[0], entries)
            end = self._start(round_)
            unfinished = [entry for entry in entries if not (self.folder / entry.folder / MANIFEST).exists()]
            if not unfinished:
                break
            self._close(round_, unfinished[0], end if end.status != "ok" else RoundEnd("failed", "left no record"))
            by_id = {run.run_id: run for run in left}
            left = [by_id[entry.run_id] for entry in unfinished[1:]]
            victim = by_id[unfinished[0].run_id]
            if end.status != "oom":
                self.failures[victim.run_id] += 1
                if self.failures[victim.run_id] < ATTEMPTS:
                    left.append(victim)
        self._read()

    def _start(self, round_: Round) -> RoundEnd:
        follow = _Follow(self.folder, round_, self.labels, self.observer)
        try:
            return self.launcher.run(self.folder, round_, follow.beat)
        except (KeyboardInterrupt, Interrupted):
            for entry in round_.entries:
                if not (self.folder / entry.folder / MANIFEST).exists():
                    if (self.folder / entry.folder).exists():
                        self._close(round_, entry, RoundEnd("killed", "interrupted"))
                    break
            raise Interrupted("interrupted", "the same command goes on with what is missing") from None
        finally:
            follow.finish()
            self._read()

    def _entry(self, run: RunSpec) -> Entry:
        known = self.folder / "runs" / run.run_id
        numbers = [int(path.name.removeprefix("launch")) for path in known.glob("launch*")]
        launch = max(numbers, default=-1) + 1
        name = f"runs/{run.run_id}/launch{launch}"
        return Entry(folder=name, run_id=run.run_id, launch=launch, spec=run.model_dump(mode="json"))

    def _round(self, run: RunSpec, entries: list[Entry]) -> Round:
        cores: Sequence[tuple[int, ...]] | None = None
        if run.device == "cpu" and run.threads_per_rank is not None:
            allowed = self.machine.cores
            cores = core_sets(run.ranks_per_node, run.threads_per_rank, allowed, sibling_groups(allowed))
        name = f"{self.rounds:04d}-w{run.world_size}"
        self.rounds += 1
        return Round(
            name=name,
            world_size=run.world_size,
            nodes=run.nodes,
            ranks_per_node=run.ranks_per_node,
            device=run.device,
            cores=tuple(cores or ()),
            entries=tuple(entries),
        )

    def _close(self, round_: Round, entry: Entry, end: RoundEnd) -> None:
        spec = RunSpec.model_validate(entry.spec)
        close_launch(self.folder / entry.folder, spec, entry.launch, round_.name, end.status, end.reason)
        self.observer.launch_finished(entry.run_id, entry.launch, end.status, None, end.reason)


class _Follow:
    """Turns heartbeats into what an observer hears."""

    def __init__(self, folder: Path, round_: Round, labels: dict[str, str], observer: Observer) -> None:
        self._folder, self._round, self._labels, self._observer = folder, round_, labels, observer
        self._current = -1
        self._steady_since: tuple[int, float] | None = None

    def beat(self, beat: Beat) -> None:
        """The slowest rank is here."""
        entries = self._round.entries
        while self._current < min(beat.entry, len(entries) - 1):
            self._finished(self._current)
            self._current += 1
            entry = entries[self._current]
            self._steady_since = None
            self._observer.launch_started(entry.run_id, self._labels.get(entry.run_id, entry.run_id), entry.launch)
        if beat.entry >= len(entries):
            return
        entry = entries[beat.entry]
        self._observer.progress(entry.run_id, beat.step, beat.steps, beat.phase, beat.loss, self._pace(entry, beat))

    def finish(self) -> None:
        """The round is over."""
        for number in range(max(self._current, 0), len(self._round.entries)):
            self._finished(number)

    def _pace(self, entry: Entry, beat: Beat) -> float | None:
        if beat.phase != "steady":
            return None
        now = time.monotonic()
        if self._steady_since is None:
            self._steady_since = (beat.step, now)
        step, since = self._steady_since
        if beat.step == step or now == since:
            return None
        return float((beat.step - step) * entry.spec["global_batch"] / (now - since))

    def _finished(self, number: int) -> None:
        if number < 0:
            return
        entry = self._round.entries[number]
        folder = self._folder / entry.folder
        if (folder / MANIFEST).exists() and json.loads((folder / MANIFEST).read_bytes())["status"] == "ok":
            pace = entry.spec["global_batch"] / launch_step_s(folder)
            self._observer.launch_finished(entry.run_id, entry.launch, "ok", pace, None)


def launch_step_s(folder: Path) -> float:
    """Median over the steady window of the slowest rank's step, seconds, of a finished launch."""
    slowest: dict[int, float] = {}
    for path in folder.glob("steps.*.jsonl"):
        for line in path.read_text().splitlines():
            step = json.loads(line)
            if step["window"] == "steady":
                slowest[step["step"]] = max(slowest.get(step["step"], 0.0), step["step_s"])
    return statistics.median(slowest.values())


def close_launch(folder: Path, spec: RunSpec, launch: int, round_: str, status: Status, reason: str | None) -> None:
    """Write the manifest of a launch that ended without one."""
    make_folder(folder)
    if not (folder / RUN).exists():
        write_json(folder / RUN, spec.model_dump(mode="json"))
    began = datetime.datetime.fromtimestamp((folder / RUN).stat().st_mtime, datetime.UTC)
    manifest = Manifest(
        run_id=spec.run_id,
        launch=launch,
        round=round_,
        status=status,
        reason=reason,
        source="measured",
        started=began.isoformat(timespec="seconds"),
        layout=Layout(
            world_size=spec.world_size,
            nodes=spec.nodes,
            ranks_per_node=spec.ranks_per_node,
            backend="nccl" if spec.device == "cuda" else "gloo",
        ),
    )
    write_manifest(folder, manifest)


def _bury(folder: Path, planned: dict[str, RunSpec]) -> None:
    """Give the launches that a dead process left unfinished their status."""
    for launch in read_launches(folder):
        spec = launch.spec or planned.get(launch.run_id)
        if launch.manifest is None and spec is not None:
            reason = "its process ended before the launch was finished"
            close_launch(launch.path, spec, launch.launch, "unknown", "killed", reason)


def _by_process_start(runs: list[RunSpec]) -> list[list[RunSpec]]:
    """Runs that one process start can serve, by rising world size."""

    def key(run: RunSpec) -> tuple[int, int, str, int]:
        return run.world_size, run.nodes, run.device, run.threads_per_rank or 0

    return [list(group) for _, group in itertools.groupby(sorted(runs, key=key), key)]


def _next_round(folder: Path) -> int:
    numbers = [int(path.name.split("-")[0]) for path in (folder / "rounds").glob("[0-9]*-w*")]
    return max(numbers, default=-1) + 1
