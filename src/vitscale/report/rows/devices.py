"""Rows of the figures about devices: their sensors against time, and what an epoch takes against world size."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from vitscale.analysis.devices import Reading
from vitscale.analysis.result import DeviceSeries, RunResult, StudyResult
from vitscale.report.rows import MOST_KEYS, ChartData, label
from vitscale.report.rows.metrics import CUT, Metric, in_panels

MOST_READINGS = 120
"""Points of a device's curve."""

MOST_DEVICES = 16
"""Curves of a run in a panel."""

SENSORS = {
    "power_w": ("power, W", 1.0),
    "utilisation_share": ("GPU utilisation, %", 100.0),
    "temperature_c": ("temperature, °C", 1.0),
    "cpu_cores": ("cores at work on the host", 1.0),
}
"""Field of a reading -> heading of its panel, and the factor to its unit."""

COSTS = (
    Metric("images per joule", "count", lambda _, run: run.costs.images_per_joule),
    Metric("energy of an epoch", "energy", lambda _, run: run.costs.energy_per_epoch_j),
    Metric("cost of an epoch", "count", lambda _, run: run.costs.cost_per_epoch),
    Metric("energy to the target accuracy", "energy", lambda _, run: run.costs.energy_to_accuracy_j),
    Metric("cost to the target accuracy", "count", lambda _, run: run.costs.cost_to_accuracy),
)


def sensor_data(result: StudyResult) -> ChartData:
    """Devices of each run's first launch that counts, against the time since its steps began."""
    by_run: dict[str, list[DeviceSeries]] = {}
    for series in result.devices.series:
        by_run.setdefault(series.run_id, []).append(series)
    drawn = list(by_run)[:MOST_KEYS]
    rows: list[dict[str, Any]] = []
    for field, (heading, factor) in SENSORS.items():
        for run_id in drawn:
            for series in _extremes(by_run[run_id], field):
                same = {"panel": heading, "key": label(result, run_id), "device": series.device}
                rows += [{**same, "x": x, "y": y * factor} for x, y in _thinned(series.readings, field)]
    headings = {row["panel"] for row in rows}
    panels = tuple(heading for heading, _ in SENSORS.values() if heading in headings)
    notes = [f"{len(drawn)} of {len(by_run)} runs are drawn."] if len(drawn) < len(by_run) else []
    if any(len(by_run[run_id]) > MOST_DEVICES for run_id in drawn):
        notes.append(f"Of more than {MOST_DEVICES} devices, those with the lowest and highest means are drawn.")
    return ChartData(tuple(rows), tuple(dict.fromkeys(row["key"] for row in rows)), panels, notes=tuple(notes))


def _extremes(devices: Sequence[DeviceSeries], field: str) -> list[DeviceSeries]:
    """The devices that told a field: all, or of many those with the lowest and the highest means."""
    means = {}
    for index, one in enumerate(devices):
        told = [value for reading in one.readings if (value := getattr(reading, field)) is not None]
        if told:
            means[index] = fmean(told)
    order = sorted(means, key=lambda index: means[index])
    if len(order) > MOST_DEVICES:
        order = order[: MOST_DEVICES // 2] + order[-MOST_DEVICES // 2 :]
    return [devices[index] for index in sorted(order)]


def cost_data(result: StudyResult) -> ChartData:
    """Energy and money against world size, with each series' knee."""
    runs = costly(result)
    keys = list(dict.fromkeys(label(result, run.series) for run in runs))
    drawn = [run for run in runs if label(result, run.series) in keys[:MOST_KEYS]]
    knees = {knee.run_id for knee in result.devices.knees if knee.reached}

    def same(run: RunResult) -> dict[str, Any]:
        return {"key": label(result, run.series), "x": run.world_size, "knee": run.run_id in knees}

    rows, panels = in_panels(result, COSTS, drawn, same)
    notes = [f"{MOST_KEYS} of {len(keys)} series are drawn; the table has all."] if len(keys) > MOST_KEYS else []
    if any(row["high"] is not None for row in rows):
        notes.append(CUT)
    if any(row["knee"] for row in rows):
        notes.append("Ringed: the knee, beyond which cost rises by a larger factor than time falls.")
    return ChartData(tuple(rows), tuple(keys[:MOST_KEYS]), panels, notes=tuple(notes))


def costly(result: StudyResult) -> list[RunResult]:
    """Valid runs of which energy or cost is known."""
    return [run for run in result.analysis.runs if run.valid and run.costs.model_dump(exclude_none=True)]


def _thinned(readings: Sequence[Reading], field: str) -> list[tuple[float, float]]:
    told = [(one.time_s, getattr(one, field)) for one in readings if getattr(one, field) is not None]
    if len(told) <= MOST_READINGS:
        return told
    return [told[round(index * (len(told) - 1) / (MOST_READINGS - 1))] for index in range(MOST_READINGS)]
