"""Conclusions with their evidence. What makes one, and the threshold, stands beside its constant.

Findings about the records (what failed, what is missing or altered) are in `outcomes.py`, those about communication in
`communication.py`, those about devices in `device_findings.py` and `memory.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, pairwise
from statistics import median

from vitscale.analysis import (
    collectives,
    communication,
    debug_flags,
    device_findings,
    exposed,
    learning,
    memory,
    mixed,
    outcomes,
    overhead,
    text,
)
from vitscale.analysis.load import Run, StudyData
from vitscale.analysis.result import Finding, RunResult
from vitscale.analysis.scaling import named_baseline, speedup
from vitscale.analysis.split import OPEN_SHARE
from vitscale.config.labels import ranks
from vitscale.statistics import OUTLIER_Z, Estimate, differ, modified_z
from vitscale.units import percent, seconds

FEWEST_LAUNCHES = 3
"""`too_few_launches`: below this an interval is absent (1) or too wide to tell anything (2)."""

UNSTABLE_INTERVAL = 0.10
"""`unstable`: half the width of the 95 % interval of the step over its median."""

UNSTABLE_DRIFT = 0.05
"""`unstable`: the second half of the steady window is this much slower or faster, in the median launch."""

OUTLIER_EFFECT = 0.05
"""`outlier`: also this far from the median. Among 3 launches 3.5 alone flags one honest set in five."""

FEWEST_GAIN = 1.05
"""`does_not_scale`: the upper end of the gain over the next smaller world size."""

POOR_EFFICIENCY = 0.5
"""`does_not_scale`: the upper end of the efficiency; the estimate, where there is no interval, proves nothing."""

Results = Mapping[str, RunResult]


def find(study: StudyData, results: Sequence[RunResult], baselines: Mapping[str, str]) -> tuple[Finding, ...]:
    """Every finding, the gravest first."""
    by_id = {result.run_id: result for result in results}
    found = [*outcomes.find(study)]
    for check in _OF_RECORDS:
        found += check(study)
    for compare in _OF_RESULTS:
        found += compare(study, by_id)
    found += _baseline_missing(study, by_id, baselines)
    found += communication.find(study, by_id)
    found += collectives.find(study)
    found += exposed.find(study)
    found += overhead.find(study)
    found += learning.find(study, by_id, baselines)
    found += debug_flags.find(study)
    found += device_findings.find(study)
    found += memory.find(study, by_id)
    found += mixed.find(study, by_id)
    gravity = {"error": 0, "warning": 1, "note": 2}
    return tuple(sorted(found, key=lambda finding: gravity[finding.severity]))


def outliers(run: Run) -> set[int]:
    """Numbers of the launches whose step is unlike the run's others: flagged and kept."""
    scores = modified_z(run.step_s)
    counted = [one for one in run.counted if one.figures is not None]
    middle = median(run.step_s) if run.step_s else 0.0
    return {
        one.record.launch
        for one, score, step_s in zip(counted, scores, run.step_s, strict=True)
        if abs(score) > OUTLIER_Z and abs(step_s / middle - 1) > OUTLIER_EFFECT
    }


def neighbours(study: StudyData, results: Results) -> Iterator[tuple[Run, Run, Estimate]]:
    """Valid runs of a series at adjacent world sizes, smaller first, with the gain in throughput."""
    for runs in study.by_series.values():
        by_size = {run.facts.world_size: run for run in reversed(runs) if results[run.run_id].valid}
        for smaller, larger in pairwise(by_size[size] for size in sorted(by_size)):
            yield smaller, larger, speedup(larger, smaller)


def _too_few_launches(study: StudyData) -> Iterator[Finding]:
    few = [
        run
        for run in study.runs
        if run.source == "measured" and not run.trains and 0 < len(run.step_s) < FEWEST_LAUNCHES
    ]
    if few:
        fewest = min(len(run.step_s) for run in few)
        yield Finding(
            kind="too_few_launches",
            severity="warning",
            evidence=f"{text.count(len(few), 'run')} of {len(study.runs)} with fewer than {FEWEST_LAUNCHES} launches, "
            f"down to {fewest}: {text.names([study.labels[run.run_id] for run in few])}.",
            hint=f"measure.launches={FEWEST_LAUNCHES} gives a first interval, 5 are for publishing",
            runs=tuple(run.run_id for run in few),
        )


def _unstable(study: StudyData, results: Results) -> Iterator[Finding]:
    for run in study.runs:
        step_s = results[run.run_id].step_s
        drifts = [one.drift for one in run.figures if one.drift is not None]
        drift = median(drifts) if drifts else 0.0
        evidence = []
        if step_s and step_s.low is not None and step_s.high is not None:
            half = (step_s.high - step_s.low) / 2 / step_s.median
            if half > UNSTABLE_INTERVAL:
                evidence.append(f"step {text.duration(step_s)}, ± {percent(half)} over {len(run.step_s)} launches")
        if abs(drift) > UNSTABLE_DRIFT:
            direction = "slower" if drift > 0 else "faster"
            evidence.append(
                f"steps get {percent(abs(drift))} {direction} from the first half of a launch to the second"
            )
        if evidence:
            yield Finding(
                kind="unstable",
                severity="warning",
                evidence=f"{study.labels[run.run_id]}: {'; '.join(evidence)}.",
                hint="look for other load and heat; add launches (measure.launches) or warm-up (measure.warmup_steps)"
                if run.source != "imported"
                else None,
                runs=(run.run_id,),
            )


def _outliers(study: StudyData) -> Iterator[Finding]:
    for run in study.runs:
        flagged = outliers(run)
        values = [
            f"launch {one.record.launch}: {seconds(one.figures.step_s)}"
            for one in run.counted
            if one.figures and one.record.launch in flagged
        ]
        if values:
            yield Finding(
                kind="outlier",
                severity="note",
                evidence=f"{study.labels[run.run_id]}: {', '.join(values)}, where the median of {len(run.step_s)} "
                f"launches is {seconds(median(run.step_s))} (modified z-score above {OUTLIER_Z}); kept in all figures.",
                runs=(run.run_id,),
            )


def _no_difference_in_size(study: StudyData, results: Results) -> Iterator[Finding]:
    for smaller, larger, _ in neighbours(study, results):
        yield from _no_difference(study, results[smaller.run_id], results[larger.run_id])


def _no_difference_between_series(study: StudyData, results: Results) -> Iterator[Finding]:
    """Only runs that differ in one axis are compared: what else differs could explain a difference."""
    at: dict[tuple[str | None, int], list[RunResult]] = {}
    for run in study.runs:
        if results[run.run_id].valid:
            at.setdefault((run.facts.protocol, run.facts.world_size), []).append(results[run.run_id])
    for group in at.values():
        for a, b in combinations(group, 2):
            differing = sum(a.axes.get(key) != b.axes.get(key) for key in a.axes.keys() | b.axes.keys())
            if a.series != b.series and a.source == b.source and differing == 1:
                yield from _no_difference(study, a, b)


def _no_difference(study: StudyData, a: RunResult, b: RunResult) -> Iterator[Finding]:
    first, second = a.images_per_s, b.images_per_s
    if first is None or second is None or None in (first.low, second.low) or differ(first, second):
        return
    yield Finding(
        kind="no_difference",
        severity="note",
        evidence=f"No difference detected between {study.labels[a.run_id]} ({text.rate(first)}) and "
        f"{study.labels[b.run_id]} ({text.rate(second)}): the 95 % intervals overlap.",
        hint="more launches narrow the intervals (measure.launches)",
        runs=(a.run_id, b.run_id),
    )


def _does_not_scale(study: StudyData, results: Results) -> Iterator[Finding]:
    for smaller, larger, gain in neighbours(study, results):
        efficiency = results[larger.run_id].efficiency
        evidence = []
        if gain.high is not None and gain.high < FEWEST_GAIN:
            step = f"{smaller.facts.world_size} to {ranks(larger.facts.world_size, larger.facts.device_kind)}"
            evidence.append(f"from {step} throughput is only {text.ratio(gain)}")
        if efficiency is not None and efficiency.high is not None and efficiency.high < POOR_EFFICIENCY:
            evidence.append(f"efficiency is {text.share(efficiency)}")
        if evidence:
            yield Finding(
                kind="does_not_scale",
                severity="warning",
                evidence=f"{study.labels[larger.run_id]}: {'; '.join(evidence)}.",
                hint="the waterfall and the split of the step tell where the time goes",
                runs=(larger.run_id,),
            )


def _mixed_devices(study: StudyData) -> Iterator[Finding]:
    for name, runs in study.by_series.items():
        devices = sorted({device for run in runs for device in run.device_names})
        if len(devices) > 1:
            yield Finding(
                kind="mixed_devices",
                severity="warning",
                evidence=f"{study.labels[name]}: ranks ran on {len(devices)} kinds of device ({', '.join(devices)}), "
                "so a difference in speed may be theirs.",
                hint="one series on one kind of device; to use unlike ones well, engine.split=proportional",
                runs=tuple(run.run_id for run in runs),
            )


def _more_ranks_than_cores(study: StudyData) -> Iterator[Finding]:
    over = [run for run in study.runs if run.facts.oversubscribed]
    if over:
        yield Finding(
            kind="more_ranks_than_cores",
            severity="warning",
            evidence=f"More ranks than cores: {text.names([study.labels[run.run_id] for run in over])}; "
            "they share cores, so their times say nothing about scaling.",
            hint="leave those world sizes out, or use a machine with more cores",
            runs=tuple(run.run_id for run in over),
        )


def _split_open(study: StudyData) -> Iterator[Finding]:
    """Parts that leave time over, where a rank timed all of them, or that exceed the step."""
    for run in study.runs:
        others = [one.other for one in run.figures if one.parts and (one.split or one.other < 0)]
        worst = max(others, key=abs, default=0.0)
        if abs(worst) > OPEN_SHARE:
            over = f"{percent(worst)} of the step is in none of them" if worst > 0 else "they overlap"
            yield Finding(
                kind="split_open",
                severity="note",
                evidence=f"{study.labels[run.run_id]}: the timed parts add up to {percent(1 - worst)} of the step, so "
                f"{over}; `other` is the difference, and nothing is scaled.",
                runs=(run.run_id,),
            )


def _baseline_missing(study: StudyData, results: Results, baselines: Mapping[str, str]) -> Iterator[Finding]:
    named = named_baseline(study.results.resolved)
    for name, runs in study.by_series.items():
        if name in baselines or not any(results[run.run_id].step_s for run in runs):
            continue
        sizes = ", ".join(str(run.facts.world_size) for run in runs if results[run.run_id].valid)
        wanted = "valid run" if named is None else f"valid run with world_size {named} (`measure.baseline`)"
        yield Finding(
            kind="baseline_missing",
            severity="warning",
            evidence=f"{study.labels[name]}: no {wanted}, so there is no speed-up or efficiency "
            f"(valid world sizes: {sizes or 'none'}).",
            hint="measure that world size too, or leave measure.baseline out" if named else None,
            runs=tuple(run.run_id for run in runs),
        )


_OF_RECORDS: tuple[Callable[[StudyData], Iterator[Finding]], ...] = (
    _too_few_launches,
    _mixed_devices,
    _more_ranks_than_cores,
    _outliers,
    _split_open,
)
_OF_RESULTS: tuple[Callable[[StudyData, Results], Iterator[Finding]], ...] = (
    _unstable,
    _does_not_scale,
    _no_difference_in_size,
    _no_difference_between_series,
)
