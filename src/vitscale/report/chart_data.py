"""What each figure draws, as rows, and in words what it leaves out so that it stays readable."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from vitscale.analysis import text
from vitscale.analysis.result import Interval, LossCurve, RunResult, Shares, StudyResult
from vitscale.units import number, percent

MOST_KEYS = 8
"""Series told apart by colour and shape; the eye tells no more."""

MOST_BARS = 24
"""Runs whose split is drawn."""

MOST_POINTS = 160
"""Points of a loss curve."""

PARTS: dict[str, str] = {
    "data": "data",
    "forward": "forward",
    "backward": "backward",
    "optimizer": "optimizer",
    "comm_exposed": "exposed communication",
    "wait": "wait for slower ranks",
    "comm_and_wait": "communication and wait",
    "launch_gap": "launch gap",
    "other": "other",
}
"""Parts of a step in the order they are stacked, as they are shown."""

# Only imported sources have this part; of measured runs nobody misses it.
_EXPECTED = {part: words for part, words in PARTS.items() if part != "comm_and_wait"}

PROTOCOLS: dict[str | None, str] = {
    "strong": "strong: same global batch",
    "strong_fixed_micro": "strong_fixed_micro: same micro-batch",
    "weak": "weak: same work per device",
    None: "protocol not known",
}
"""Heading of a panel; protocols never share one."""


@dataclass(frozen=True)
class ChartData:
    """Rows of one figure."""

    rows: tuple[dict[str, Any], ...]
    keys: tuple[str, ...]
    """What colour and shape tell apart, in order."""
    others: str = ""
    """The key of what is drawn in grey, where there is more than `MOST_KEYS`."""
    notes: tuple[str, ...] = ()
    """What is not drawn, or drawn differently, in words."""


def scaling_data(result: StudyResult, field: str) -> ChartData:
    """A point per run with its interval: `field` is `images_per_s`, `speedup` or `efficiency`."""
    runs = [run for run in result.analysis.runs if getattr(run, field) is not None]
    all_keys = list(dict.fromkeys(panel_key(result, run) for run in runs))
    keys = all_keys if len(all_keys) <= MOST_KEYS else all_keys[: MOST_KEYS - 1]
    others = "" if len(keys) == len(all_keys) else f"{len(all_keys) - len(keys)} further series"
    # Grey first: what is drawn later lies on top.
    ordered = sorted(runs, key=lambda run: panel_key(result, run) in keys)
    rows = tuple(_point(result, run, getattr(run, field), field, keys, others) for run in ordered)
    notes = []
    if any(not run.valid for run in runs):
        notes.append("Hollow: not valid as a measurement of scaling; no line passes through it.")
    if any(getattr(run, field).low is None for run in runs):
        notes.append("No bar: too few launches for an interval.")
    if others:
        notes.append(f"The first {len(keys)} series have colours of their own; {others} are grey. The table has all.")
    return ChartData((*rows, *_ideal(result, runs, field)), tuple(keys), others, tuple(notes))


def split_data(result: StudyResult) -> ChartData:
    """A row per part of each run's step."""
    measured = [run for run in result.analysis.runs if _any_share(run.shares)]
    drawn = _bars(measured)
    rows: list[dict[str, Any]] = []
    for run in drawn:
        start = 0.0
        for part, words in PARTS.items():
            share = getattr(run.shares, part)
            if share:
                rows.append(_segment(result, run, words, start, share))
                start += share
    notes = (
        [f"{len(drawn)} of {len(measured)} runs are drawn, largest world sizes; the table has all."]
        if len(drawn) < len(measured)
        else []
    )
    missing = [words for part, words in _EXPECTED.items() if all(getattr(run.shares, part) is None for run in measured)]
    if measured and missing:
        notes.append(f"Not timed in any run: {', '.join(missing)}; that time is inside the parts that are shown.")
    partly = [
        words
        for part, words in _EXPECTED.items()
        if words not in missing and any(getattr(run.shares, part) is None for run in measured)
    ]
    if partly:
        notes.append(f"Timed in some runs only: {', '.join(partly)}; n/a in the table where it was not.")
    seen = {row["part"] for row in rows}
    return ChartData(tuple(rows), tuple(words for words in PARTS.values() if words in seen), notes=tuple(notes))


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
    return ChartData(tuple(rows), tuple(keys), notes=tuple(notes))


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


def label(result: StudyResult, identity: str) -> str:
    """Short label of a run or series."""
    return result.labels.get(identity, identity)


def panel(run: RunResult) -> str:
    """Heading of the run's panel."""
    return PROTOCOLS[run.protocol]


def panel_key(result: StudyResult, run: RunResult, *, of_run: bool = False) -> str:
    """Label without the protocol, which is the panel's: what is equal in two panels has one colour."""
    return label(result, run.run_id if of_run else run.series).removeprefix(f"{run.protocol}, ")


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


def _any_share(shares: Shares) -> bool:
    return any(getattr(shares, part) is not None for part in PARTS)


def _bars(measured: Sequence[RunResult]) -> list[RunResult]:
    """All runs; where they are too many, the largest world size of each series, the protocols taking turns."""
    if len(measured) <= MOST_BARS:
        return list(measured)
    largest = {run.series: run for run in measured}
    turns: dict[str | None, int] = {}
    ranked = []
    for run in largest.values():
        turns[run.protocol] = turns.get(run.protocol, 0) + 1
        ranked.append((turns[run.protocol], run.run_id))
    chosen = {run_id for _, run_id in sorted(ranked, key=lambda one: one[0])[:MOST_BARS]}
    return [run for run in measured if run.run_id in chosen]


def _segment(result: StudyResult, run: RunResult, words: str, start: float, share: float) -> dict[str, Any]:
    return {
        "panel": panel(run),
        "label": label(result, run.run_id) + ("" if run.valid else " (not valid)"),
        "part": words,
        "start": start,
        "end": start + share,
        "middle": start + share / 2,
        "shown": percent(share),
        # A narrower segment has no room for its figure.
        "figure": number(share * 100, 2) if share >= 0.1 else "",
    }


def _by_importance(result: StudyResult, runs: dict[str, RunResult]) -> Iterable[LossCurve]:
    known = [curve for curve in result.losses if curve.run_id in runs]
    largest: dict[str, str] = {}
    for curve in known:
        largest[runs[curve.run_id].series] = curve.run_id
    first = {*largest.values(), *result.analysis.baselines.values()}
    return sorted(known, key=lambda curve: curve.run_id not in first)
