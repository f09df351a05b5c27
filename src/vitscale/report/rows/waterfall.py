"""Rows of the waterfall: from ideal throughput to the measured one, in shares of the ideal."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from vitscale.analysis.cause import Cause, Waterfall
from vitscale.analysis.result import RunResult, StudyResult
from vitscale.analysis.verdict import of_largest
from vitscale.analysis.waterfall import late_parts
from vitscale.report.rows import ChartData, label
from vitscale.units import NOT_AVAILABLE, number, percent, seconds

BARS: dict[str, str] = {
    "data_s": "data",
    "compute_s": "computing",
    "optimizer_s": "optimizer",
    "comm_exposed_s": "communication",
    "late_s": "late ranks",
    "wait_s": "wait for ranks",
    "comm_and_wait_s": "communication, wait",
    "launch_gap_s": "launch gap",
    "other_s": "other",
}
"""Parts in the order they are lost, as they are shown; other words than those of the split would not fit a panel.
`late_s` is what is cut from the others for a late rank."""

CAUSES: dict[str, str] = {
    "micro_batch": "small micro-batch",
    "contention": "shared machine",
    "oversubscribed": "too few cores",
    "throttled": "clocks held down",
}
"""Causes that are told of computing, as their bars are called; what they leave is in the bar of computing."""

LATE = ("straggler", "imbalance")
"""Causes that are told of late ranks."""

_WORDS = {"data_s": BARS["data_s"], **CAUSES, **BARS}
"""Every bar in order; a cause stands before what it is cut from."""

_NOTES = {
    "throttled": "Clocks held down cost here what is beyond the baseline's.",
    "late_s": "A late rank's bar is what it takes longer, as the mean over ranks, and what the others wait for it: the "
    "verdict's seconds, less what the baseline has of it.",
}

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
    cut = {run.run_id: _cut(result, run, bars) for run, bars in drawn}
    shown = [name for name in _WORDS if any(_seen(name, cut[run.run_id], bars) for run, bars in drawn)]
    words = {name: _late_word(result, chosen) if name == "late_s" else _WORDS[name] for name in shown}
    rows = tuple(row for run, bars in drawn for row in _bars(_panel(result, run), bars, words, cut[run.run_id]))
    notes = [f"{len(drawn)} of {len(told)} runs are drawn; the table has all."] if len(drawn) < len(told) else []
    untimed = [run for run, bars in drawn if run.world_size > 1 and bars.comm_exposed_s is bars.comm_and_wait_s is None]
    if untimed:
        notes.append("Where communication was not timed apart it is in computing and optimizer.")
    notes += [note for name, note in _NOTES.items() if name in words]
    keys = [key for key in (ENDS, LOST, GAINED) if any(row["kind"] == key for row in rows)]
    panels = tuple(dict.fromkeys(row["panel"] for row in rows))
    return ChartData(rows, tuple(keys), panels, notes=tuple(notes))


def beyond_ideal(result: StudyResult, run: RunResult, bars: Waterfall) -> dict[str, float | None]:
    """Seconds of a step beyond the ideal, by `BARS`; `late_s` is there where the verdict names a late rank.

    That is cut from the parts in which it lies, so that all sum as those of `bars` do. As of any part, it is what is
    beyond the baseline's.
    """
    told: dict[str, float | None] = {name: getattr(bars, name) for name in BARS if name != "late_s"}
    cost_s = _late_s(result, run.run_id)
    late = {} if cost_s is None else late_parts(result.ranks.get(run.run_id, ()), cost_s)
    if not late:
        return told
    base_id = result.analysis.baselines[run.series]
    base_cost_s = _late_s(result, base_id)
    of_base = {} if base_cost_s is None else late_parts(result.ranks.get(base_id, ()), base_cost_s)
    ratio = _ratio(result, run, bars)
    cut = {name: late.get(name, 0.0) - ratio * of_base.get(name, 0.0) for name in {**late, **of_base}}
    left = {name: _rest((told[name] or 0.0) - cut_s, bars) for name, cut_s in cut.items()}
    return {**told, **left, "late_s": _rest(sum(cut.values()), bars)}


def _late_s(result: StudyResult, run_id: str) -> float | None:
    """What the verdict gives late ranks of a run; None where it names none."""
    return next((one.seconds.median for one in _causes(result, run_id) if one.kind in LATE), None)


def _causes(result: StudyResult, run_id: str) -> tuple[Cause, ...]:
    return next((verdict.causes for verdict in result.analysis.verdicts if verdict.run_id == run_id), ())


def _ratio(result: StudyResult, run: RunResult, bars: Waterfall) -> float:
    """Work per rank over the baseline's, by which the ideal is scaled."""
    base_id = result.analysis.baselines[run.series]
    step_s = next(one.step_s for one in result.analysis.runs if one.run_id == base_id)
    assert step_s is not None  # else there were no waterfall
    return bars.ideal_step_s / step_s.median


def _rest(value_s: float, bars: Waterfall) -> float:
    """What a cut leaves; next to nothing is rounding."""
    return value_s if abs(value_s) > 1e-9 * bars.step_s else 0.0


def _cut(result: StudyResult, run: RunResult, bars: Waterfall) -> dict[str, float | None]:
    """The same with computing cut by the causes that are told of it."""
    told = beyond_ideal(result, run, bars)
    whole_s = told["compute_s"]
    if whole_s is None:
        return told
    causes = _of_computing(result, run.run_id)
    of_base = _of_computing(result, result.analysis.baselines[run.series])
    held_down = "throttled" in {**causes, **of_base}
    held_s = causes.pop("throttled", 0.0) - _ratio(result, run, bars) * of_base.get("throttled", 0.0)
    left_s = whole_s - sum(causes.values())
    if held_down:
        # The verdict need not name as much of both: that would be a loss in one bar, and a gain in the other.
        causes["throttled"] = min(max(held_s, min(0.0, left_s)), max(0.0, left_s))
        left_s -= causes["throttled"]
    return {**told, **causes, "compute_s": _rest(left_s, bars)}


def _of_computing(result: StudyResult, run_id: str) -> dict[str, float]:
    """Cause that is told of a run's computing -> its seconds of a step."""
    return {one.kind: one.seconds.median for one in _causes(result, run_id) if one.kind in CAUSES}


def _seen(name: str, told: dict[str, float | None], bars: Waterfall) -> bool:
    """Whether there is anything to see; what no part accounts for is nothing mostly."""
    if name == "other_s":
        return percent(abs(told[name] or 0.0) / bars.step_s) != percent(0.0)
    return bool(getattr(bars, name) or told[name]) if hasattr(bars, name) else name in told


def _late_word(result: StudyResult, run_ids: Collection[str]) -> str:
    """What the bar of late ranks is called: by the rank where all runs have the same one."""
    late = {one.rank for run_id in run_ids for one in _causes(result, run_id) if one.kind in LATE}
    return BARS["late_s"] if len(late) > 1 or None in late else f"late rank {late.pop()}"


def _panel(result: StudyResult, run: RunResult) -> str:
    """The run's label, with a colon where a narrow panel's heading may be broken."""
    whole, series = label(result, run.run_id), label(result, run.series)
    return f"{series}: {whole.removeprefix(f'{series}, ')}" if whole.startswith(f"{series}, ") else whole


def _bars(panel: str, bars: Waterfall, words: dict[str, str], told: dict[str, float | None]) -> list[dict[str, Any]]:
    """From 1, the ideal, down to the efficiency; what a part takes beyond its ideal is lost of the throughput.

    Args:
        panel: its heading.
        bars: of a run.
        words: what is shown of any run of the figure, with what it is called.
        told: what this run has of it; a cause or late rank that it lacks costs nothing.
    """
    rows, at = [_end(panel, IDEAL, 1.0, bars.ideal_images_per_s)], 1.0
    for name, word in words.items():
        rows.append(_bar(panel, word, told.get(name, 0.0), at, bars))
        at = rows[-1]["end"]
    return [*rows, _end(panel, MEASURED, bars.ideal_step_s / bars.step_s, at * bars.ideal_images_per_s)]


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
