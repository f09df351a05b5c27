"""Rows of the waterfall: from ideal throughput to the measured one, in shares of the ideal."""

from __future__ import annotations

from typing import Any

from vitscale.analysis.cause import Kind, Verdict, Waterfall
from vitscale.analysis.result import RunResult, StudyResult
from vitscale.analysis.verdict import of_largest
from vitscale.report.rows import ChartData, label
from vitscale.units import NOT_AVAILABLE, number, percent, seconds

BARS: dict[str, str] = {
    "data_s": "data",
    "compute_s": "computing",
    "optimizer_s": "optimizer",
    "comm_exposed_s": "communication",
    "wait_s": "wait for ranks",
    "comm_and_wait_s": "communication, wait",
    "launch_gap_s": "launch gap",
    "other_s": "other",
}
"""Parts in the order they are lost, as they are shown; other words than those of the split would not fit a panel."""

CAUSES: dict[Kind, str] = {
    "micro_batch": "small micro-batch",
    "contention": "shared machine",
    "oversubscribed": "too few cores",
    "throttled": "clocks held down",
}
"""Causes that are told of computing, as their bars are called; what they leave is in the bar of computing."""

MOST_PANELS = 4
IDEAL, MEASURED = "ideal", "measured"
ENDS, LOST, GAINED = "throughput", "lost", "gained"


def waterfalls(result: StudyResult) -> list[tuple[RunResult, Waterfall]]:
    """Valid runs that have one."""
    return [(run, run.waterfall) for run in result.analysis.runs if run.valid and run.waterfall is not None]


def waterfall_data(result: StudyResult) -> ChartData:
    """A row per bar of each run that is drawn: those whose verdict stands above it first, then the largest."""
    told = waterfalls(result)
    largest = {run.run_id for run, _ in of_largest(result.analysis, MOST_PANELS)}
    by_size = sorted(told, key=lambda one: (one[0].run_id not in largest, -one[0].world_size))
    chosen = {run.run_id for run, _ in by_size[:MOST_PANELS]}
    drawn = [(run, bars) for run, bars in told if run.run_id in chosen]
    cut = {run.run_id: _cut(result, run) for run, _ in drawn}
    words = {name: word for name, word in CAUSES.items() if any(name in causes for causes in cut.values())}
    shown = [name for name in BARS if any(_seen(name, bars) for _, bars in drawn)]
    rows = tuple(row for run, bars in drawn for row in _bars(_panel(result, run), bars, shown, words, cut[run.run_id]))
    notes = [f"{len(drawn)} of {len(told)} runs are drawn; the table has all."] if len(drawn) < len(told) else []
    untimed = [run for run, bars in drawn if run.world_size > 1 and bars.comm_exposed_s is bars.comm_and_wait_s is None]
    if untimed:
        notes.append("Where communication was not timed apart it is in computing and optimizer.")
    if any(verdict.run_id in chosen and _late(verdict) for verdict in result.analysis.verdicts):
        notes.append("What a late rank works longer is in computing, what the others wait for it in wait for ranks.")
    keys = [key for key in (ENDS, LOST, GAINED) if any(row["kind"] == key for row in rows)]
    panels = tuple(dict.fromkeys(row["panel"] for row in rows))
    return ChartData(rows, tuple(keys), panels, notes=tuple(notes))


def _cut(result: StudyResult, run: RunResult) -> dict[Kind, float]:
    """Cause that is told of a run's computing -> its seconds of a step."""
    found = [one for verdict in result.analysis.verdicts if verdict.run_id == run.run_id for one in verdict.causes]
    return {one.kind: one.seconds.median for one in found if one.kind in CAUSES}


def _seen(name: str, bars: Waterfall) -> bool:
    """Whether there is anything to see; what no part accounts for is nothing mostly."""
    value_s = getattr(bars, name)
    return bool(value_s) and (name != "other_s" or percent(abs(value_s) / bars.step_s) != percent(0.0))


def _late(verdict: Verdict) -> bool:
    return any(cause.kind in ("straggler", "imbalance") for cause in verdict.causes)


def _panel(result: StudyResult, run: RunResult) -> str:
    """The run's label, with a colon where a narrow panel's heading may be broken."""
    whole, series = label(result, run.run_id), label(result, run.series)
    return f"{series}: {whole.removeprefix(f'{series}, ')}" if whole.startswith(f"{series}, ") else whole


def _bars(
    panel: str, bars: Waterfall, shown: list[str], words: dict[Kind, str], cut: dict[Kind, float]
) -> list[dict[str, Any]]:
    """From 1, the ideal, down to the efficiency; what a part takes beyond its ideal is lost of the throughput.

    Computing is cut by what the verdict tells of it.

    Args:
        panel: its heading.
        bars: of a run.
        shown: which of them.
        words: causes that any run of the figure has, with what they are called.
        cut: causes that this run has, with their seconds.
    """
    rows = [_end(panel, IDEAL, 1.0, bars.ideal_images_per_s)]
    for name in shown:
        told_s = getattr(bars, name)
        if name == "compute_s" and told_s is not None:
            for kind, word in words.items():
                rows.append(_bar(panel, word, cut.get(kind, 0.0), rows[-1]["end"], bars))
            told_s -= sum(cut.values())
            told_s = told_s if abs(told_s) > 1e-9 * bars.step_s else 0.0
        rows.append(_bar(panel, BARS[name], told_s, rows[-1]["end"], bars))
    rate = rows[-1]["end"] * bars.ideal_images_per_s
    return [*rows, _end(panel, MEASURED, bars.ideal_step_s / bars.step_s, rate)]


def _bar(panel: str, word: str, told_s: float | None, at: float, bars: Waterfall) -> dict[str, Any]:
    """A part, from where the one before it ends; None was not timed."""
    lost = (told_s or 0.0) / bars.step_s
    beyond = f"{seconds(told_s)} of a step of {seconds(bars.step_s)} beyond the ideal"
    return {
        "panel": panel,
        "bar": word,
        "kind": GAINED if _signed(-lost).startswith("+") else LOST,
        "start": at,
        "end": at - lost,
        "at": max(at, at - lost),
        "figure": NOT_AVAILABLE if told_s is None else _signed(-lost),
        "shown": "not timed apart"
        if told_s is None
        else f"{beyond}, {number(lost * bars.ideal_images_per_s)} images/s",
    }


def _signed(share: float) -> str:
    shown = percent(abs(share))
    return shown if shown == percent(0.0) else f"{'−' if share < 0 else '+'}{shown}"


def _end(panel: str, bar: str, share: float, rate: float) -> dict[str, Any]:
    same = {"panel": panel, "bar": bar, "kind": ENDS, "start": 0.0, "end": share, "at": share}
    return {**same, "figure": percent(share), "shown": f"{number(rate)} images/s"}
