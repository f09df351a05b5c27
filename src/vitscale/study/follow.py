"""From heartbeats to what an observer hears while a round is served."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Protocol

from pydantic_core import from_json

from vitscale.config.runspec import RunSpec
from vitscale.records.links import LinkBenchmark, read_links
from vitscale.records.round import Beat, Entry, Round, read_listens
from vitscale.records.writer import MANIFEST
from vitscale.study.expected import AllReduce, all_reduce
from vitscale.units import decimal, percent, size


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

    def message(self, line: str) -> None:
        """Something worth a line of its own."""


class Follow:
    """Turns heartbeats into what an observer hears.

    Args:
        folder: the results folder.
        round_: the round.
        labels: run_id -> label.
        observer: who hears it.
        told: what was said of earlier rounds and is not said again.
    """

    def __init__(
        self, folder: Path, round_: Round, labels: dict[str, str], observer: Observer, told: set[str] | None = None
    ) -> None:
        self._folder, self._round, self._labels, self._observer = folder, round_, labels, observer
        self._told = set() if told is None else told
        self._current = -1
        self._steady_since: tuple[int, float] | None = None
        self._listens: list[list[str]] | None = None
        self._links: LinkBenchmark | None = None

    def beat(self, beat: Beat) -> None:
        """The slowest rank is here."""
        self._tell_listening()
        self._tell_slow_links()
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

    def _tell_listening(self) -> None:
        """Say once where ranks of several hosts listen."""
        if self._listens is None and self._round.nodes > 1:
            self._listens = read_listens(self._folder / "rounds" / self._round.name)
            line = None if self._listens is None else _listening(self._listens)
            if line is not None and line not in self._told:
                self._told.add(line)
                self._observer.message(line)

    def _tell_slow_links(self) -> None:
        """Once for each world, before its first launch: links far below the rate that `lab` shapes them to."""
        round_ = self._round
        if self._links is not None or round_.world_size == 1 or not round_.entries:
            return
        self._links = read_links(self._folder / "rounds" / round_.name)
        if self._links is None:
            return
        link, backend = self._links.link, self._links.backend
        world = f"links of {round_.world_size} ranks on {round_.nodes} hosts, {link}, {backend}"
        if world not in self._told:
            self._told.add(world)
            run = RunSpec.model_validate(round_.entries[0].spec)
            found = all_reduce(run, self._links.device, self._links)
            if found is not None and found.slow:
                self._observer.message(_slow(found))

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
            self._observer.launch_finished(entry.run_id, entry.launch, "ok", images_per_s(self._folder, entry), None)


def _listening(hosts: list[list[str]]) -> str:
    ports = [port for host in hosts for port in host]
    names = sorted({port.partition(":")[0] for port in ports})
    on = ", ".join("every interface" if name == "all" else f"`{name}`" for name in names)
    where = f"{len(ports)} ports, on {on}" if ports else "no port"
    return f"ranks of {len(hosts)} hosts listen on {where}; whoever reaches them is trusted"


def _slow(found: AllReduce) -> str:
    assert found.expected is not None
    assert found.share is not None
    rates = f"{decimal(found.timing.bus_bytes_per_s, 'B/s')} of {decimal(found.expected.bytes_per_s, 'B/s')}"
    told = f"the links give {percent(found.share, 0)} of what is expected ({found.expected.whose})"
    return f"{told}: an all-reduce of {size(found.timing.bytes)} has {rates}; `vitscale doctor` looks for the slow one"


def images_per_s(folder: Path, entry: Entry) -> float | None:
    """Throughput of a launch in its steady window; None without any."""
    step_s = launch_step_s(folder / entry.folder)
    return None if step_s is None else entry.spec["global_batch"] / step_s


def launch_step_s(folder: Path) -> float | None:
    """Median over the steady window of the slowest rank's step, seconds, of a finished launch; None without any."""
    slowest: dict[int, float] = {}
    for path in folder.glob("steps.*.jsonl"):
        for line in path.read_bytes().splitlines():
            step = from_json(line)  # a third of json.loads' time and less, and 4,096 ranks leave millions of lines
            if step["window"] == "steady":
                slowest[step["step"]] = max(slowest.get(step["step"], 0.0), step["step_s"])
    return statistics.median(slowest.values()) if slowest else None
