"""Rows of the split of a step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vitscale.analysis.result import RunResult, Shares, StudyResult
from vitscale.analysis.split import OPEN_SHARE
from vitscale.report.rows import ChartData, label, panel
from vitscale.units import number, percent

MOST_BARS = 24
"""Runs whose split is drawn."""

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


def split_data(result: StudyResult) -> ChartData:
    """A row per part of each run's step."""
    measured = [run for run in result.analysis.runs if _any_share(run.shares)]
    drawn = _bars(measured)
    rows: list[dict[str, Any]] = []
    for run in drawn:
        start = 0.0
        for part, words in PARTS.items():
            share = getattr(run.shares, part)
            if share and share > 0:
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
    if any(run.shares.other is not None and run.shares.other < -OPEN_SHARE for run in drawn):
        notes.append("A bar beyond 100 %: its parts overlap, and nothing is scaled.")
    seen = {row["part"] for row in rows}
    return ChartData(tuple(rows), tuple(words for words in PARTS.values() if words in seen), notes=tuple(notes))


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
