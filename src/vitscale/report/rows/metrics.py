"""Figures of a run, each in a panel of its own with a unit of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vitscale.analysis.result import Interval, RunResult, StudyResult
from vitscale.units import energy, number, percent, seconds, size

CUT = "Intervals are drawn up to twice the highest median; the table has their ends."
"""Of few noisy launches they would leave no room for anything else."""


@dataclass(frozen=True)
class Metric:
    """What a panel shows of a run."""

    title: str
    kind: str
    """One of `UNITS`."""
    of: str | Callable[[StudyResult, RunResult], Interval | float | None]
    """Field of `RunResult`, or what it is made of."""


UNITS: dict[str, tuple[tuple[float, str], ...]] = {
    "time": ((3600, "hours"), (60, "minutes"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")),
    "memory": ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")),
    "energy": ((3.6e6, "kWh"), (1e3, "kJ"), (1, "J")),
    "share": ((0.01, "%"),),
    "count": ((1, ""),),
}
"""Kind -> sizes and names of its units: an axis has the largest one that its highest value fills."""

FORMS: dict[str, Callable[[float | None], str]] = {
    "time": seconds, "memory": size, "energy": energy, "share": percent, "count": number,
}  # fmt: skip
"""Kind -> how a single value is written."""


def value_of(metric: Metric, result: StudyResult, run: RunResult) -> Interval | None:
    """What a metric says of a run; None where it was not measured."""
    found = getattr(run, metric.of) if isinstance(metric.of, str) else metric.of(result, run)
    return found if found is None or isinstance(found, Interval) else Interval(median=float(found))


def in_panels(
    result: StudyResult,
    metrics: Sequence[Metric],
    runs: Sequence[RunResult],
    same: Callable[[RunResult], dict[str, Any]],
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    """Rows of a chart, and the headings of its panels; a metric that no run has is left out.

    Args:
        result: the study.
        metrics: a panel each.
        runs: a point each.
        same: what a run's rows have beside `panel`, `y`, `low`, `high` and `shown`.
    """
    rows: list[dict[str, Any]] = []
    headings = []
    for metric in metrics:
        values = [(run, value_of(metric, result, run)) for run in runs]
        told = [(run, value) for run, value in values if value is not None]
        if told:
            most = max(abs(value.median) for _, value in told)
            unit, name = next((one for one in UNITS[metric.kind] if most >= one[0]), UNITS[metric.kind][-1])
            headings.append(f"{metric.title}, {name}" if name else metric.title)
            for run, value in told:
                shown = {"panel": headings[-1], "shown": FORMS[metric.kind](value.median)}
                rows.append({**same(run), **shown, **_ends(value, unit, 2 * most)})
    return rows, tuple(headings)


def _ends(value: Interval, unit: float, most: float) -> dict[str, float | None]:
    ends = {"y": value.median, "low": value.low, "high": None if value.high is None else min(value.high, most)}
    return {name: None if end is None else end / unit for name, end in ends.items()}
