"""Rows of what a rank holds."""

from __future__ import annotations

from typing import Any

from vitscale.analysis.result import RunResult, StudyResult
from vitscale.report.rows import ChartData, label
from vitscale.report.rows.metrics import UNITS
from vitscale.report.rows.split import MOST_BARS
from vitscale.units import size

CLASSES: dict[str, str] = {
    "parameters": "parameters",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "buckets": "buckets and gathered weights",
}
"""Classes in the order they are stacked, as they are shown."""


def held(result: StudyResult) -> list[RunResult]:
    """Runs whose memory was counted."""
    return [run for run in result.analysis.runs if run.memory.measured]


def memory_data(result: StudyResult) -> ChartData:
    """A row per class of each run; the last one has the sum of the closed forms too."""
    runs = held(result)
    highest = max((_total(run) for run in runs), default=1)
    unit_bytes, unit = next(one for one in UNITS["memory"] if one[0] <= max(highest, 1))
    rows: list[dict[str, Any]] = []
    for run in runs[:MOST_BARS]:
        start = 0.0
        for name, words in CLASSES.items():
            measured = getattr(run.memory, name).measured_bytes
            end = start + measured / unit_bytes
            same = {"label": label(result, run.run_id), "unit": unit}
            rows.append({**same, "part": words, "start": start, "end": end, "shown": size(measured)})
            start = end
        derived = [getattr(run.memory, name).derived_bytes for name in CLASSES]
        if None not in derived:
            rows[-1] |= {"derived": sum(derived) / unit_bytes, "derived_shown": size(sum(derived))}
    notes = [f"{MOST_BARS} of {len(runs)} runs are drawn; the table has all."] if len(runs) > MOST_BARS else []
    return ChartData(tuple(rows), tuple(CLASSES.values()), notes=tuple(notes))


def _total(run: RunResult) -> int:
    return sum(getattr(run.memory, name).measured_bytes for name in CLASSES)
