"""The table of runs that were repeated with other seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from vitscale.analysis.result import RunResult, StudyResult
from vitscale.report.rows import label
from vitscale.report.tables import Table
from vitscale.units import NOT_AVAILABLE, percent, seconds, size

SEED = "measure.seed"


def seed_table(result: StudyResult) -> Table:
    """Optimizer state, step and test accuracy of runs that differ in their seed alone; no rows where no seed varies."""
    grouped: dict[str, list[RunResult]] = {}
    for run in result.analysis.runs:
        if SEED in run.axes:
            grouped.setdefault(_without_seed(result, run), []).append(run)
    rows = []
    for name, runs in grouped.items():
        held = [one.memory.optimizer.measured_bytes for one in runs]
        states = [one for one in held if one is not None]
        steps = [one.step_s.median for one in runs if one.step_s]
        accuracies = [one.test_accuracy for one in runs if one.test_accuracy is not None]
        cells = (_range(states, size), _range(steps, seconds), _range(accuracies, percent))
        rows.append((name, str(len(runs)), *cells))
    header = ("Runs", "Seeds", "Optimizer state of a rank", "Step", "Test accuracy")
    return Table("Median over the seeds, least and most", header, tuple(rows))


def _without_seed(result: StudyResult, run: RunResult) -> str:
    words = [one for one in label(result, run.run_id).split(", ") if one.partition(" ")[0] != "seed"]
    return ", ".join(words)


def _range(values: Sequence[float], form: Callable[[float | None], str]) -> str:
    if not values:
        return NOT_AVAILABLE
    told, ends = form(median(values)), (form(min(values)), form(max(values)))
    return told if ends == (told, told) else f"{told} ({ends[0]} to {ends[1]})"
