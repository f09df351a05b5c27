"""What the collectives of each run carried, beside the closed form in the plan."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vitscale.analysis.load import Run, StudyData
from vitscale.analysis.result import Finding
from vitscale.records.collectives import CollectiveRecord
from vitscale.records.links import LinkBenchmark, Timing
from vitscale.units import percent, size

DIFFERENCE = 0.01
"""`collectives_differ`: bytes of an operation per step are this far from the closed form, relative to all bytes."""


def carried(run: Run) -> tuple[CollectiveRecord, ...]:
    """Of the first launch that counts and recorded them; none where nothing was sent or recorded."""
    return next((one.record.collectives for one in run.counted if one.record.collectives), ())


def idle_links(study: StudyData, run: Run) -> LinkBenchmark | None:
    """What the links of the run's first round that timed them gave on their own."""
    rounds = [one.record.manifest.round for one in run.counted if one.record.manifest is not None]
    return next((study.results.links[name] for name in rounds if name in study.results.links), None)


def idle_busbw(links: LinkBenchmark | None, line: CollectiveRecord) -> float | None:
    """Bus bandwidth of the same operation on the idle link, at the size nearest to one call's; None if not timed.

    All ranks were timed together: what a part of them reaches, maybe within one host, that does not tell.
    """
    nearest = _nearest(links, line)
    return None if nearest is None else nearest.bus_bytes_per_s


def idle_link_s(links: LinkBenchmark | None, lines: Sequence[CollectiveRecord]) -> float | None:
    """What the same calls would take on the idle link, one after another, per step; None where any was not timed.

    A call takes its bytes over the rate at the nearest size, and no less than the link's latency.
    """
    total = 0.0
    for line in lines:
        nearest = _nearest(links, line)
        if links is None or nearest is None:
            return None
        each_s = line.bytes_per_step / line.calls_per_step / nearest.algorithm_bytes_per_s
        total += line.calls_per_step * max(links.latency_s, each_s)
    return total or None


def _nearest(links: LinkBenchmark | None, line: CollectiveRecord) -> Timing | None:
    if links is None or links.world_size != line.group_size:
        return None
    each = line.bytes_per_step / line.calls_per_step
    timed = [one for one in links.timings if one.operation == line.operation]
    return min(timed, key=lambda one: abs(math.log(one.bytes / each)), default=None)


def by_operation(lines: tuple[CollectiveRecord, ...]) -> dict[str, float]:
    """Operation -> bytes per step, all sizes and groups together."""
    found: dict[str, float] = {}
    for line in lines:
        found[line.operation] = found.get(line.operation, 0.0) + line.bytes_per_step
    return found


def planned(plan: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """run_id -> operation -> bytes per step, of each planned run, as its estimate counts them."""
    found: dict[str, dict[str, float]] = {}
    for run in plan.get("runs", ()):
        collectives = (run.get("estimate") or {}).get("collectives")
        if collectives is not None:
            sent: dict[str, float] = {}
            for one in collectives:
                sent[one["operation"]] = sent.get(one["operation"], 0.0) + one["bytes"]
            found[str(run["run_id"])] = sent
    return found


def find(study: StudyData) -> Iterator[Finding]:
    """Runs whose collectives carry more or less than the closed form says."""
    forms = planned(study.results.plan)
    for run in study.runs:
        lines, form = carried(run), forms.get(run.run_id)
        if form is None or not run.counted or run.source != "measured":
            continue
        apart = list(_apart(by_operation(lines), form))
        if apart:
            yield Finding(
                kind="collectives_differ",
                severity="note",
                evidence=f"{study.labels[run.run_id]}: per step {'; '.join(apart)}.",
                hint="what the plan says of communication is off by as much for runs like it",
                runs=(run.run_id,),
            )


def _apart(measured: Mapping[str, float], form: Mapping[str, float]) -> Iterator[str]:
    total = max(sum(measured.values()), sum(form.values()))
    for operation in sorted({*measured, *form}):
        gap = measured.get(operation, 0.0) - form.get(operation, 0.0)
        if abs(gap) > DIFFERENCE * total:
            told, derived = size(measured.get(operation, 0.0)), size(form.get(operation, 0.0))
            yield f"{operation} carries {told}, by the closed form {derived} ({percent(gap / total)} of all bytes)"
