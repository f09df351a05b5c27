"""Rows of the figures against a batch size or the accumulation, and of the split of efficiency.

A curve joins runs that are equal in everything but what lies across, and what follows from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitscale.analysis.result import Interval, RunResult, StudyResult
from vitscale.config.labels import ranks
from vitscale.report.rows import MOST_KEYS, ChartData, label
from vitscale.report.rows.metrics import CUT, Metric, in_panels, value_of
from vitscale.units import percent

_BATCH = ("micro_batch", "grad_accum", "global_batch")
_FOLLOWS = (*_BATCH, "optimizer.lr", "data.images")
_MOST_PANELS = 6


@dataclass(frozen=True)
class Sweep:
    """Runs that differ in one thing."""

    across: str
    """`micro_batch`, `grad_accum` or `global_batch`; or another key of the study that varies, as a number."""
    equal: tuple[str, ...]
    """What of the batch identity a curve has in common."""
    metrics: tuple[Metric, ...]
    of_one_size: bool = True
    """Whether a curve's runs have the same world size."""
    timed: bool = True
    """Whether it is about time: runs that are not valid as a measurement of scaling are left out."""

    def at(self, run: RunResult) -> Any:
        """Where a run lies across; None where it does not."""
        return run.axes.get(self.across) if "." in self.across else getattr(run, self.across)


def added_by_ranks(result: StudyResult, run: RunResult) -> Interval | None:
    """Step time beyond that of the smallest world size with the same micro_batch and grad_accum: the cost of being
    many, whatever it goes to (communication, waiting, shared memory). None where there is no smaller one."""
    alike = [one for one in result.analysis.runs if one.valid and one.step_s and _alike(one) == _alike(run)]
    least = min(alike, key=lambda one: one.world_size, default=None)
    if least is None or least.step_s is None or run.step_s is None or least.world_size == run.world_size:
        return None
    return Interval(median=run.step_s.median - least.step_s.median)


def _alike(run: RunResult) -> tuple[Any, ...]:
    return (run.micro_batch, run.grad_accum, run.model, run.source, *_others(run))


def _sent(result: StudyResult, run: RunResult) -> float | None:
    return result.sent_bytes.get(run.run_id)


BATCH = Sweep(
    across="micro_batch",
    equal=("grad_accum",),
    metrics=(
        Metric("epoch", "time", "epoch_s"),
        Metric("step time added by more ranks", "time", added_by_ranks),
    ),
)
ACCUMULATION = Sweep(
    across="grad_accum",
    equal=("global_batch",),
    metrics=(
        Metric("step", "time", "step_s"),
        Metric("peak memory of a rank", "memory", "memory_peak_bytes"),
        Metric("sent by a rank per step: closed form", "memory", _sent),
    ),
)
ACCURACY = Sweep(
    across="global_batch",
    equal=(),
    metrics=(
        Metric("test accuracy", "share", "test_accuracy"),
        Metric("epochs to the target accuracy", "count", "epochs_to_accuracy"),
    ),
    of_one_size=False,
    timed=False,
)
RESOLUTION = Sweep(
    across="model.img_size",
    equal=("micro_batch", "grad_accum"),
    metrics=(
        Metric("step", "time", "step_s"),
        Metric("peak memory of a rank", "memory", "memory_peak_bytes"),
        Metric("sent by a rank per step: closed form", "memory", _sent),
    ),
)


def sweep_data(result: StudyResult, sweep: Sweep) -> ChartData:
    """A point per run and metric; curves with one value across are no curves and are left out."""
    runs = swept(result, sweep)
    all_keys = list(dict.fromkeys(sweep_key(result, run, sweep) for run in runs))
    keys = all_keys[:MOST_KEYS]
    known = [run for run in runs if sweep_key(result, run, sweep) in keys]
    rows, panels = in_panels(result, sweep.metrics, known, lambda run: _same(result, run, sweep))
    notes = []
    if len(keys) < len(all_keys):
        notes.append(f"{len(keys)} of {len(all_keys)} curves are drawn; the table has all.")
    if sweep.timed and rows and not all(run.valid for run in result.analysis.runs):
        notes.append("Runs that are not valid as a measurement of scaling are left out.")
    if len({(row["panel"], row["key"], row["x"]) for row in rows}) < len(rows):
        notes.append("Of several runs at one place the line passes through the mean.")
    if any(row["high"] is not None for row in rows):
        notes.append(CUT)
    return ChartData(tuple(rows), tuple(keys), panels, notes=tuple(notes))


def swept(result: StudyResult, sweep: Sweep) -> list[RunResult]:
    """Runs that lie on a curve of at least two points of the first metric, by what lies across."""
    values: dict[str, set[int]] = {}
    told = [
        run
        for run in result.analysis.runs
        if (run.valid or not sweep.timed) and sweep.at(run) and value_of(sweep.metrics[0], result, run)
    ]
    for run in told:
        values.setdefault(sweep_key(result, run, sweep), set()).add(sweep.at(run))
    curves = [run for run in told if len(values[sweep_key(result, run, sweep)]) > 1]
    return sorted(curves, key=lambda run: (sweep_key(result, run, sweep), sweep.at(run)))


def sweep_key(result: StudyResult, run: RunResult, sweep: Sweep) -> str:
    """What a curve's runs have in common, in words; what is the same everywhere is left out."""
    every = result.analysis.runs
    parts = [str(run.protocol)] if len({one.protocol for one in every}) > 1 else []
    parts += [f"{name} {getattr(run, name)}" for name in sweep.equal if len({getattr(one, name) for one in every}) > 1]
    others = [(name, "off" if value is None else value) for name, value in _others(run) if name != sweep.across]
    parts += [f"{name.rpartition('.')[2]} {value}" for name, value in others]
    return ", ".join([*parts, ranks(run.world_size, None)] if sweep.of_one_size else parts or ["all runs"])


def efficiency_data(result: StudyResult) -> ChartData:
    """System and algorithmic efficiency and their product against world size, a panel per series."""
    rows: list[dict[str, Any]] = []
    panels: list[str] = []
    by_series: dict[str, list[RunResult]] = {}
    for run in result.analysis.runs:
        if run.valid and run.efficiency and run.algorithmic_efficiency:
            by_series.setdefault(run.series, []).append(run)
    told = [runs for runs in by_series.values() if len(runs) > 1]
    for runs in told[:_MOST_PANELS]:
        panels.append(label(result, runs[0].series))
        for run in runs:
            rows += [
                {"panel": panels[-1], "key": key, "x": run.world_size, "y": value, "shown": percent(value)}
                for key, value in _efficiencies(run).items()
            ]
    notes = (f"{_MOST_PANELS} of {len(told)} series are drawn; the table has all.",) if len(told) > _MOST_PANELS else ()
    return ChartData(tuple(rows), EFFICIENCIES if rows else (), tuple(panels), notes=notes)


EFFICIENCIES = ("system", "algorithmic", "the whole")


def _efficiencies(run: RunResult) -> dict[str, float]:
    assert run.efficiency is not None
    assert run.algorithmic_efficiency is not None
    system, algorithmic = run.efficiency.median, run.algorithmic_efficiency
    return dict(zip(EFFICIENCIES, (system, algorithmic, system * algorithmic), strict=True))


def _same(result: StudyResult, run: RunResult, sweep: Sweep) -> dict[str, Any]:
    key = sweep_key(result, run, sweep)
    return {"key": key, "label": label(result, run.run_id), "x": sweep.at(run)}


def _others(run: RunResult) -> Sequence[tuple[str, Any]]:
    return [(name, value) for name, value in run.axes.items() if name not in _FOLLOWS]
