"""Rows of the curves: training loss, and what the test set says as training goes on."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from vitscale.analysis.learning import target_of
from vitscale.analysis.result import AccuracyCurve, LossCurve, RunResult, StudyResult
from vitscale.report.rows import MOST_KEYS, ChartData, label, panel, panel_key, protocol_panels
from vitscale.units import number, percent

MOST_POINTS = 160
"""Points of a loss curve."""

AGAINST = {"epoch": "epochs", "images": "images seen", "seconds": "training time, seconds"}
"""Field of an evaluation -> heading of the panel that has it across."""


def loss_data(result: StudyResult) -> ChartData:
    """Loss curves, thinned; baselines and largest world sizes first where there are too many."""
    runs = {run.run_id: run for run in result.analysis.runs}
    keys: list[str] = []
    drawn: list[LossCurve] = []
    for curve in _by_importance(result, runs):
        key = panel_key(result, runs[curve.run_id], of_run=True)
        if key not in keys and len(keys) < MOST_KEYS:
            keys.append(key)
        if key in keys:
            drawn.append(curve)
    order = {run_id: index for index, run_id in enumerate(runs)}
    drawn.sort(key=lambda curve: order[curve.run_id])
    keys = list(dict.fromkeys(panel_key(result, runs[curve.run_id], of_run=True) for curve in drawn))
    rows: list[dict[str, Any]] = []
    for curve in drawn:
        run = runs[curve.run_id]
        same = {"panel": panel(run), "key": panel_key(result, run, of_run=True)}
        # Six digits are more than a screen shows.
        rows += [{**same, "images": x, "loss": float(f"{y:.6g}")} for x, y in thinned(curve)]
    notes = []
    if len(drawn) < len(result.losses):
        notes.append(f"{len(drawn)} of {len(result.losses)} curves are drawn, baselines and largest world sizes first.")
    longest = max((len(curve.images) for curve in drawn), default=0)
    if longest > MOST_POINTS:
        notes.append(f"Curves longer than {MOST_POINTS} steps are drawn by evenly spaced steps.")
    every = tuple(rows)
    return ChartData(every, tuple(keys), protocol_panels(every), notes=tuple(notes))


def test_data(result: StudyResult, field: str) -> ChartData:
    """`test_accuracy` or `test_loss` of every evaluation, against each of `AGAINST` in a panel of its own."""
    runs = {run.run_id: run for run in result.analysis.runs}
    known = [curve for curve in result.accuracies if curve.run_id in runs]
    drawn = known[:MOST_KEYS]
    rows: list[dict[str, Any]] = []
    for across, heading in AGAINST.items():
        for curve in drawn:
            rows += _test_rows(curve, field, across, heading, label(result, curve.run_id))
    notes = [f"{len(drawn)} of {len(known)} runs are drawn; the table has all."] if len(drawn) < len(known) else []
    panels = tuple(dict.fromkeys(row["panel"] for row in rows))
    target = target_of(result.resolved) if field == "test_accuracy" else None
    if target is not None and rows:
        rows += [{"panel": heading, "key": None, "y": target} for heading in panels]
        notes.append(f"Dashed: the target of {percent(target)}.")
    keys = dict.fromkeys(row["key"] for row in rows if row["key"] is not None)
    return ChartData(tuple(rows), tuple(keys), panels, notes=tuple(notes))


def _test_rows(curve: AccuracyCurve, field: str, across: str, heading: str, key: str) -> list[dict[str, Any]]:
    form = percent if field == "test_accuracy" else number
    points = [(getattr(one, across), getattr(one, field)) for one in curve.evaluations]
    return [
        {"panel": heading, "key": key, "x": x, "y": y, "shown": form(y)}
        for x, y in points
        if x is not None and y is not None
    ]


def thinned(curve: LossCurve) -> list[tuple[int, float]]:
    """Evenly spaced (images, loss), the first and last among them; steps without a finite loss are left out."""
    told = [
        (x, y)
        for x, y in zip(curve.images, curve.loss, strict=True)
        if x is not None and y is not None and math.isfinite(y)
    ]
    if len(told) <= MOST_POINTS:
        return told
    return [told[round(index * (len(told) - 1) / (MOST_POINTS - 1))] for index in range(MOST_POINTS)]


def _by_importance(result: StudyResult, runs: dict[str, RunResult]) -> Iterable[LossCurve]:
    known = [curve for curve in result.losses if curve.run_id in runs]
    largest: dict[str, str] = {}
    for curve in known:
        largest[runs[curve.run_id].series] = curve.run_id
    first = {*largest.values(), *result.analysis.baselines.values()}
    return sorted(known, key=lambda curve: curve.run_id not in first)
