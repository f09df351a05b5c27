"""Rows of the figure of predictions: efficiency that was measured, and what is said of larger world sizes."""

from __future__ import annotations

from typing import Any

from vitscale.analysis.result import StudyResult
from vitscale.report.rows import MOST_KEYS, ChartData, label, panel, panel_key, protocol_panels
from vitscale.units import number


def prediction_data(result: StudyResult) -> ChartData:
    """Measured and predicted efficiency of every series with a prediction; no rows where there is none."""
    runs = {run.series: run for run in result.analysis.runs}
    told = [one for one in result.predictions if one.series in runs][:MOST_KEYS]
    rows: list[dict[str, Any]] = []
    for one in told:
        first = runs[one.series]
        same = {"panel": panel(first), "key": panel_key(result, first)}
        measured = [run for run in result.analysis.runs if run.series == one.series and run.efficiency and run.valid]
        for run in measured:
            assert run.efficiency is not None
            shown = f"{label(result, run.run_id)}, measured"
            rows.append(
                {**same, "kind": "run", "world_size": run.world_size, "y": run.efficiency.median, "shown": shown}
            )
        for point in one.points:
            spread = point.efficiency
            rate = point.images_per_s
            shown = f"predicted: {number(rate.median if rate else None)} images/s, limited by {point.limit}"
            ends = {"low80": spread.low80, "high80": spread.high80, "low95": spread.low95, "high95": spread.high95}
            at = {"kind": "predicted", "world_size": point.world_size, "y": spread.median}
            rows.append({**same, **at, **ends, "shown": shown})
    keys = tuple(dict.fromkeys(row["key"] for row in rows))
    notes = ("Filled: measured. Hollow: predicted, with its 80 % (thick, darker) and 95 % interval.",) if rows else ()
    return ChartData(tuple(rows), keys, protocol_panels(tuple(rows)), "", notes)
