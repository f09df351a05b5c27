"""Exposed communication by three methods: by arrivals in the steady window, without collectives, and by the profiler.

All tell what blocked ranks would save: `comm_exposed` and `wait` together. The verdict trusts arrivals, since they are
of the very steps that are counted, and of many more. Where another method differs from them, that is a finding. An
engine that sends from a stream of its own lets arrivals tell nothing; then it trusts the steps without collectives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from statistics import fmean, median
from typing import NamedTuple

from vitscale.analysis import text
from vitscale.analysis.collectives import carried, idle_link_s, idle_links
from vitscale.analysis.interval import Interval
from vitscale.analysis.load import LaunchFigures, Run, StudyData
from vitscale.analysis.result import Finding
from vitscale.records.schema import Device
from vitscale.statistics import difference_interval

DIFFERENCE = 0.05
"""`exposed_differs`: a method is this much of the step from arrivals, and the interval of the difference excludes 0."""

OF_ONE_LAUNCH = 0.10
"""The share in place of `DIFFERENCE` where a single launch gives no interval."""

FEWEST_PAIRS = 3
"""Pairs of blocks with and without collectives. Of fewer a single launch has too little to judge by, and of several
the whole interval has to be beyond `DIFFERENCE`: one step more or less late is as much."""

Share = Callable[[LaunchFigures], float | None]
"""What a method tells of a launch."""


class Method(NamedTuple):
    """A way beside arrivals."""

    share: Callable[[Device], float | None]
    """What a rank's record tells, as a share of its step; None where it has no such steps."""
    words: str
    above: str
    """What to think of where it tells more than arrivals."""
    below: str


def silent_share(run: Run) -> Interval | None:
    """Share of the step that goes where collectives are taken out; None where no launch took such steps."""
    return _over_launches(run, SILENCE)


def profiled_share(run: Run) -> Interval | None:
    """Share of the step that the profiler saw communication in and no computation; None where it saw no launch."""
    return _over_launches(run, PROFILER)


def idle_link_share(study: StudyData, run: Run) -> float | None:
    """In place of steps without collectives, where there are none: what the same calls would take on the idle link,
    one after another, over the step. No waiting is in it, and nothing hides it; None where the link was not timed."""
    if not run.step_s or any(_mean(one, SILENCE) is not None for one in run.counted):
        return None
    took_s = idle_link_s(idle_links(study, run), carried(run))
    return None if took_s is None else took_s / median(run.step_s)


def seconds_by(run: Run, method: Method) -> list[float]:
    """What a method tells of a step, one per launch that counts; launches that do not tell are left out."""
    shares = [(_mean(one, method), one.figures) for one in run.counted]
    return [share * figures.step_s for share, figures in shares if share is not None and figures is not None]


def few_pairs(devices: Iterable[Device]) -> bool:
    """Whether ranks took fewer pairs of blocks with and without collectives than tell of a single launch."""
    return any(one.silence is not None and one.silence.blocks < FEWEST_PAIRS for one in devices)


def find(study: StudyData) -> Iterator[Finding]:
    """Runs in which a method differs from arrivals, or where these tell nothing, the other two from each other."""
    for run in study.runs:
        told, hints, few = [], [], few_pairs(run.devices)
        for method in (SILENCE, PROFILER):
            both = _pairs(run, partial(_mean, method=method), _blocked)
            if not both:
                continue
            other, blocked = (text.share(difference_interval(values)) for values in zip(*both, strict=True))
            told.append(f"{method.words.format(other)} (by arrivals {blocked})")
            hints += [method.above if more > 0 else method.below for more in _apart(both, few and method is SILENCE)]
        trusted = "arrivals: they are of the steps that count"
        if not told:
            both = _pairs(run, partial(_mean, method=SILENCE), partial(_mean, method=PROFILER))
            shown = (text.share(difference_interval(values)) for values in zip(*both, strict=True))
            told = [method.words.format(one) for method, one in zip((SILENCE, PROFILER), shown, strict=False)]
            hints = [SILENCE.above if more > 0 else PROFILER.above for more in _apart(both, few)]
            trusted = "the steps without collectives: what they lack is what a step would save"
        if hints:
            yield Finding(
                kind="exposed_differs",
                severity="note",
                evidence=f"{study.labels[run.run_id]}: {'; '.join(told)}. The verdict rests on {trusted}.",
                hint="; ".join(hints),
                runs=(run.run_id,),
            )


def _pairs(run: Run, a: Share, b: Share) -> list[tuple[float, float]]:
    """Both shares of each launch that tells both."""
    told = [(a(one), b(one)) for one in run.counted]
    return [(one, other) for one, other in told if one is not None and other is not None]


def _apart(both: Sequence[tuple[float, float]], few: bool) -> list[float]:
    """By how much the first share is the larger, where that is more than noise; empty where not.

    Args:
        both: of each launch.
        few: one of them rests on fewer pairs than `FEWEST_PAIRS`.
    """
    if not both:
        return []
    gap = difference_interval([one - other for one, other in both])
    if gap.low is None or gap.high is None:
        return [gap.median] if abs(gap.median) > OF_ONE_LAUNCH and not few else []
    beyond = DIFFERENCE if few else 0.0
    return [gap.median] if abs(gap.median) > DIFFERENCE and (gap.low > beyond or gap.high < -beyond) else []


def _over_launches(run: Run, method: Method) -> Interval | None:
    told = [share for one in run.counted if (share := _mean(one, method)) is not None]
    if not told:
        return None
    found = difference_interval(told)
    return Interval(median=found.median, low=found.low, high=found.high)


def _mean(one: LaunchFigures, method: Method) -> float | None:
    """Over all ranks; None where one of them does not tell: it may be the one that the others wait for."""
    told = [method.share(device) for device in one.record.manifest.devices] if one.record.manifest else []
    known = [share for share in told if share is not None]
    return fmean(known) if known and len(known) == len(told) else None


def _blocked(one: LaunchFigures) -> float | None:
    parts = one.figures.parts if one.figures else {}
    return parts["comm_exposed"] + parts["wait"] if "comm_exposed" in parts and "wait" in parts else None


def _silent(device: Device) -> float | None:
    told = device.silence
    return 1 - told.silent_step_s / told.step_s if told else None


def _profiled(device: Device) -> float | None:
    told = device.overlap
    return (told.comm_and_wait_s - told.overlapped_s) / told.step_s if told else None


SILENCE = Method(
    _silent,
    "a step without collectives is {} shorter",
    above="sending beside computing slows computing, which only the steps without collectives show",
    below="look for other load: the steps without collectives were few and came later",
)
PROFILER = Method(
    _profiled,
    "the profiler sees {} of the step that collectives take and no operator hides",
    above="the profiler takes what the host does between operators for standing still, and slows it",
    below="the profiler slows computing, of which communication is then a smaller share",
)
