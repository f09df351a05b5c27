"""Rows of the figures against world size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitscale.analysis import text
from vitscale.analysis.result import Interval, RunResult, StudyResult
from vitscale.report.rows import MOST_KEYS, ChartData, label, panel, panel_key, protocol_panels


def scaling_data(result: StudyResult, field: str) -> ChartData:
    """A point per run with its interval: `field` is `images_per_s`, `speedup` or `efficiency`."""
    runs = [run for run in result.analysis.runs if getattr(run, field) is not None]
    all_keys = list(dict.fromkeys(panel_key(result, run) for run in runs))
    keys = all_keys if len(all_keys) <= MOST_KEYS else all_keys[: MOST_KEYS - 1]
    others = "" if len(keys) == len(all_keys) else f"{len(all_keys) - len(keys)} further series"
    # Grey first: what is drawn later lies on top.
    ordered = sorted(runs, key=lambda run: panel_key(result, run) in keys)
    joined = _fewest_nodes(runs)
    rows = tuple(
        {**_point(result, run, getattr(run, field), field, keys, others), "joined": run.run_id in joined}
        for run in ordered
    )
    notes = []
    if len(joined) < sum(run.valid for run in runs):
        notes.append("Of several runs of a series at one world size the line passes through the one on fewest nodes.")
    if any(not run.valid for run in runs):
        notes.append("Hollow: not valid as a measurement of scaling; no line passes through it.")
    if any(getattr(run, field).low is None for run in runs):
        notes.append("No bar: too few launches for an interval.")
    if others:
        notes.append(f"The first {len(keys)} series have colours of their own; {others} are grey. The table has all.")
    every = (*rows, *_ideal(result, runs, field))
    return ChartData(every, tuple(keys), protocol_panels(every), others, tuple(notes))


def _fewest_nodes(runs: Sequence[RunResult]) -> set[str]:
    """Valid runs, of several of a series at one world size the one on fewest nodes."""
    fewest: dict[tuple[str, int], RunResult] = {}
    for run in sorted(runs, key=lambda run: run.nodes or 1):
        if run.valid:
            fewest.setdefault((run.series, run.world_size), run)
    return {run.run_id for run in fewest.values()}


def _point(
    result: StudyResult, run: RunResult, value: Interval, field: str, keys: Sequence[str], others: str
) -> dict[str, Any]:
    form = {"images_per_s": text.rate, "speedup": text.ratio, "efficiency": text.share}[field]
    key = panel_key(result, run)
    return {
        "kind": "run",
        "panel": panel(run),
        "key": key if key in keys else others,
        "series": run.series,
        "label": label(result, run.run_id),
        "world_size": run.world_size,
        "y": value.median,
        "low": value.low,
        "high": value.high,
        "valid": run.valid,
        "shown": form(value) + ("" if run.valid else ", not valid"),
        "step": text.duration(run.step_s) if run.step_s else "n/a",
        "source": run.source,
    }


def _ideal(result: StudyResult, runs: Sequence[RunResult], field: str) -> tuple[dict[str, Any], ...]:
    """From each baseline's world size to the largest of its panel; throughput has no ideal common to all series."""
    if field == "images_per_s":
        return ()
    sizes = {run.run_id: run.world_size for run in result.analysis.runs}
    largest: dict[tuple[str, int], int] = {}
    for run in runs:
        base = sizes[result.analysis.baselines[run.series]]
        at = panel(run), base
        largest[at] = max(largest.get(at, base), run.world_size)
    rows: list[dict[str, Any]] = []
    for (where, base), top in sorted(largest.items()):
        for size in (base, top) if top > base else ():
            at_size = {"world_size": size, "y": size / base if field == "speedup" else 1.0}
            # The text stands at the upper end only.
            rows.append({"kind": "ideal", "panel": where, "base": base, "shown": "ideal" * (size == top), **at_size})
    return tuple(rows)
