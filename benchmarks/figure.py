"""A measured figure, and the few ways of getting one: fresh processes timed from outside, medians with their range."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from vitscale.statistics import Estimate, median_of

ROOT = Path(__file__).parents[1]
VITSCALE = str(Path(sys.executable).with_name("vitscale"))


@dataclass(frozen=True)
class Figure:
    """One row of the table, as text: what was measured and what was wanted."""

    name: str
    median: str
    spread: str
    target: str
    met: bool | None
    """None where no target was set, or where it could not be measured."""
    command: str
    note: str = ""


class Failed(Exception):
    """What was to be measured did not work."""


class Finished(NamedTuple):
    """A process that has ended."""

    wall_s: float
    peak_bytes: int
    """Largest resident set of the process itself, without its children."""
    code: int
    stdout: str
    stderr: str


def run(command: Sequence[str], folder: Path, *, codes: Iterable[int] = (0,)) -> Finished:
    """Run a command in a fresh process; `folder` is where it works and where its output is kept while it runs.

    Raises:
        Failed: it ends with another status than `codes`.
    """
    out, err = folder / ".stdout", folder / ".stderr"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        began = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        wall_s = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    done = Finished(wall_s, usage.ru_maxrss * 1024, process.returncode, out.read_text(), err.read_text())
    if done.code not in codes:
        raise Failed(f"`{shown(command)}` ended with status {done.code}:\n{done.stderr[-2000:]}")
    return done


def launch_steps_s(results: Path) -> dict[str, list[float]]:
    """run_id -> median steady step of the slowest rank, launch by launch, of a results folder with its report."""
    found: dict[str, list[float]] = {}
    with (results / "report" / "tables" / "launches.csv").open(newline="") as lines:
        for one in csv.DictReader(lines):
            if one["step_s"]:
                found.setdefault(one["run_id"], []).append(float(one["step_s"]))
    return found


def shown(command: Sequence[str]) -> str:
    """A command as it is typed: programs by their name, no path of this machine."""
    return " ".join(Path(word).name if word.startswith("/") else word for word in command)


def spread(values: Sequence[float], text: Callable[[float], str]) -> str:
    """Smallest and largest value, and how many there were."""
    return f"{text(min(values))} to {text(max(values))} (n = {len(values)})"


def within(estimate: Estimate, text: Callable[[float], str], count: int) -> str:
    """95 % interval of a median, and of how many values."""
    if estimate.low is None or estimate.high is None:
        return f"no interval (n = {count})"
    return f"{text(estimate.low)} to {text(estimate.high)} (95 %, n = {count})"


def below(
    name: str, values: Sequence[float], limit: float, text: Callable[[float], str], command: str, note: str = ""
) -> Figure:
    """A figure whose median has to be below a limit."""
    median = median_of(values)
    return Figure(name, text(median), spread(values, text), f"< {text(limit)}", median < limit, command, note)


def say(line: str) -> None:
    """Tell whoever waits how far it is."""
    print(line, file=sys.stderr, flush=True)
