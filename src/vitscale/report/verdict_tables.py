"""Tables of what a step is spent on: waterfall, causes, collectives, layers, the map of accumulation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import median

from vitscale.analysis.collectives import idle_busbw
from vitscale.analysis.remedies import REMEDIES
from vitscale.analysis.result import RankStep, RunResult, StudyResult
from vitscale.analysis.split import MEASURED
from vitscale.analysis.verdict import of_largest
from vitscale.report.rows import label
from vitscale.report.rows.accumulation_map import METRICS, mapped
from vitscale.report.rows.metrics import FORMS, Metric, value_of
from vitscale.report.rows.split import PARTS
from vitscale.report.rows.waterfall import BARS, beyond_ideal, waterfalls
from vitscale.report.tables import Table, interval_text
from vitscale.units import NOT_AVAILABLE, decimal, number, percent, seconds, size


def waterfall_table(result: StudyResult) -> Table:
    """Ideal and measured throughput of every valid run, and each part's seconds beyond its ideal."""
    rows = []
    told = [(run, bars, beyond_ideal(result, run, bars)) for run, bars in waterfalls(result)]
    shown = {name: words for name, words in BARS.items() if name != "late_s" or any(name in one for *_, one in told)}
    for run, bars, parts_s in told:
        rate = run.images_per_s.median if run.images_per_s else None
        beyond = [_beyond(parts_s.get(name, 0.0)) for name in shown]
        ends = (number(bars.ideal_images_per_s), number(rate), percent(bars.ideal_step_s / bars.step_s))
        rows.append((label(result, run.run_id), *ends, seconds(bars.ideal_step_s), *beyond, seconds(bars.step_s)))
    parts = [f"{words[0].upper()}{words[1:]}" for words in shown.values()]
    header = ("Run", "Ideal, images per s", "Measured", "Efficiency", "Ideal step", *parts, "Measured step")
    return Table("From the ideal step to the measured one: what each part takes beyond its ideal", header, tuple(rows))


def _beyond(value_s: float | None) -> str:
    """A difference of measured times: below a microsecond it is rounding."""
    return seconds(0.0 if value_s is not None and abs(value_s) < 1e-6 else value_s)


def cause_table(result: StudyResult) -> Table:
    """Every cause of every run that has a verdict."""
    rows = []
    for verdict in result.analysis.verdicts:
        for cause in verdict.causes:
            name = REMEDIES[cause.kind].name + (f" ({cause.detail})" if cause.detail else "")
            whole = f"{name}, a part of {REMEDIES[cause.within].name.lower()}" if cause.within else name
            cost = (interval_text(cause.seconds, seconds), percent(cause.share))
            gain = interval_text(cause.gain, lambda value: f"{number(value)}x")
            change = f"{cause.hint}{f': {cause.override}' if cause.override else ''}"
            rows.append((label(result, verdict.run_id), whole, *cost, gain, cause.evidence, change))
    header = ("Run", "Cause", "Of a step [95 %]", "Share", "Gain [95 %]", "Evidence", "Change")
    return Table("Causes that are more than noise, by what they cost of a step", header, tuple(rows), words=7)


def collective_table(result: StudyResult) -> Table:
    """Every kind of collective of every run that recorded any, beside the same on the idle link."""
    rows = []
    micro_steps = {run.run_id: run.grad_accum or 1 for run in result.analysis.runs}
    for run_id, lines in result.collectives.items():
        for one in lines:
            of_one = (one.calls_per_step / micro_steps[run_id], one.bytes_per_step / micro_steps[run_id])
            idle = idle_busbw(result.links.get(run_id), one)
            share = one.busbw_bytes_per_s / idle if one.busbw_bytes_per_s and idle else None
            cells = (f"{one.calls_per_step:.3g}", size(one.bytes_per_step), f"{of_one[0]:.3g}", size(of_one[1]))
            took = seconds(one.wire_s_per_step)
            rates = (decimal(one.algbw_bytes_per_s, "B/s"), decimal(one.busbw_bytes_per_s, "B/s"))
            held = (decimal(idle, "B/s"), percent(share, 0))
            rows.append((label(result, run_id), one.operation, str(one.group_size), *cells, took, *rates, *held))
    counts = ("Calls", "Bytes", "Calls of a micro-step", "Its bytes")
    header = ("Run", "Operation", "Ranks", *counts, "On the wire", "Algorithm", "Bus", "Idle link", "Of it")
    return Table("Collectives of an optimizer step, and their bandwidths", header, tuple(rows), words=2)


def layer_table(result: StudyResult) -> Table:
    """Every class of layer of every run that timed them, as a roofline has it."""
    rows = []
    for run_id, lines in result.layers.items():
        whole_s = sum(one.seconds_per_step for one in lines)
        for one in lines:
            each = NOT_AVAILABLE if one.flop_per_step is None else number(one.flop_per_step / one.bytes_per_step)
            took = (seconds(one.seconds_per_step), percent(one.seconds_per_step / whole_s, 0))
            work = (decimal(one.flop_per_step, "FLOP"), size(one.bytes_per_step), each, *took)
            rates = (decimal(one.flop_per_s, "FLOP/s"), percent(one.peak_share, 0))
            moved = decimal(one.bytes_per_step / one.seconds_per_step, "B/s")
            rows.append((label(result, run_id), one.layer, *work, *rates, moved))
    header = ("Run", "Layers", "FLOP", "Bytes", "FLOP a byte", "Time", "Share", "Attained", "Of the peak", "Moved")
    return Table(
        "Forward passes of an optimizer step by class of layer; the peak is a matrix product's",
        header,
        tuple(rows),
        words=2,
    )


MOST_RANKS = 32
"""Rows of ranks; of a run with more, half as many are shown, and what all have in common."""


def rank_table(result: StudyResult) -> Table:
    """Seconds of a step by rank, of each series' largest world size; where ranks are unlike, what each computes too."""
    names = (*MEASURED, "late")
    runs = [run for run, _ in of_largest(result.analysis)]
    unlike = any(run.dealt for run in runs)
    rows = [
        (
            label(result, run.run_id),
            *place,
            *(seconds(parts.get(name)) for name in names),
            *(_share(run, place[0]) if unlike else ()),
        )
        for run in runs
        for place, parts in _places(result.ranks.get(run.run_id, ()))
    ]
    titles = [PARTS.get(name, "the others wait for it") for name in names]
    header = ("Run", "Rank", "Host", *(f"{words[0].upper()}{words[1:]}" for words in titles))
    header += ("Micro-batch", "Computes, images per s") if unlike else ()
    return Table("What each rank spends of a step, mean over steps and launches", header, tuple(rows))


def _places(ranks: Sequence[RankStep]) -> Iterator[tuple[tuple[str, str], dict[str, float]]]:
    """Rank and host beside the parts: of each rank, or of the latest ones and least, median and most of all."""
    shown = ranks
    if len(ranks) > MOST_RANKS:
        shown = sorted(ranks, key=_lateness, reverse=True)[: MOST_RANKS // 2]
    for one in shown:
        yield (str(one.rank), NOT_AVAILABLE if one.node is None else str(one.node)), one.seconds
    if shown is not ranks:
        for words, pick in (("least", min), ("median", median), ("most", max)):
            told = {name: pick([one.seconds[name] for one in ranks]) for name in ranks[0].seconds}
            yield (f"{words} of {len(ranks):,}", ""), told


def _share(run: RunResult, rank: str) -> tuple[str, str]:
    """Images of a rank and how fast it computes; a row of several ranks has none."""
    if run.dealt is None or not rank.isdecimal():
        return NOT_AVAILABLE, NOT_AVAILABLE
    one = run.dealt.ranks[int(rank)]
    shown = f"{one.micro_batch:g}" if one.micro_steps == 1 else f"{one.micro_steps} x {one.micro_batch:g}"
    return shown, number(one.images_per_s)


def _lateness(one: RankStep) -> tuple[float, float]:
    """How long the others wait for it, or where that is not told, how little it waits itself."""
    return one.seconds.get("late", 0.0), -one.seconds.get("wait", 0.0)


def map_table(result: StudyResult) -> Table:
    """Every corner of the map."""
    rows = [
        (
            label(result, run.run_id),
            str(run.zero_stage),
            str(run.grad_accum),
            *(_told(one, result, run) for one in METRICS),
        )
        for run in mapped(result)
    ]
    titles = [f"{metric.title[0].upper()}{metric.title[1:]}" for metric in METRICS]
    header = ("Run", "ZeRO stage", "Micro-steps", *titles)
    return Table("By ZeRO stage and accumulation, medians", header, tuple(rows))


def _told(metric: Metric, result: StudyResult, run: RunResult) -> str:
    value = value_of(metric, result, run)
    return NOT_AVAILABLE if value is None else FORMS[metric.kind](value.median)
