"""Exposed communication by two methods: by arrivals in the steady window, and by the same steps without collectives.

Both tell what blocked ranks would save: `comm_exposed` and `wait` together. The verdict trusts arrivals, since they are
of the very steps that are counted, and of many more. Where the methods differ, that is a finding.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from vitscale.analysis import text
from vitscale.analysis.interval import Interval
from vitscale.analysis.load import LaunchFigures, Run, StudyData
from vitscale.analysis.result import Finding
from vitscale.statistics import Estimate, difference_interval

DIFFERENCE = 0.05
"""`exposed_differs`: the methods are this much of the step apart, and the interval of their difference excludes 0."""


def silent_share(run: Run) -> Interval | None:
    """Share of the step that goes where collectives are taken out; None where no launch took such steps."""
    told = [share for one in run.counted if (share := _silent(one)) is not None]
    if not told:
        return None
    found = difference_interval(told)
    return Interval(median=found.median, low=found.low, high=found.high)


def find(study: StudyData) -> Iterator[Finding]:
    """Runs in which the two methods differ."""
    for run in study.runs:
        pairs = [(_silent(one), _blocked(one)) for one in run.counted]
        both = [(silent, blocked) for silent, blocked in pairs if silent is not None and blocked is not None]
        if not both:
            continue
        gap = difference_interval([silent - blocked for silent, blocked in both])
        if abs(gap.median) > DIFFERENCE and _certain(gap):
            silent, blocked = (difference_interval(values) for values in zip(*both, strict=True))
            yield Finding(
                kind="exposed_differs",
                severity="note",
                evidence=f"{study.labels[run.run_id]}: ranks are blocked for {text.share(blocked)} of the step by "
                f"arrivals, and a step without collectives is {text.share(silent)} shorter. The verdict rests on "
                "arrivals: they are of the steps that count.",
                hint="sending beside computing slows computing, which only the steps without collectives show"
                if gap.median > 0
                else "look for other load: the steps without collectives were few and came later",
                runs=(run.run_id,),
            )


def _certain(gap: Estimate) -> bool:
    return gap.low is not None and gap.high is not None and (gap.low > 0 or gap.high < 0)


def _silent(one: LaunchFigures) -> float | None:
    """Mean over the ranks of what a step without collectives lacks."""
    manifest = one.record.manifest
    told = [device.silence for device in manifest.devices if device.silence is not None] if manifest else []
    return fmean(1 - silence.silent_step_s / silence.step_s for silence in told) if told else None


def _blocked(one: LaunchFigures) -> float | None:
    parts = one.figures.parts if one.figures else {}
    return parts["comm_exposed"] + parts["wait"] if "comm_exposed" in parts and "wait" in parts else None
