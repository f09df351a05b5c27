"""Where the time of a step goes: the loop marks the ends of its parts, collectives say when the rank stood still.

Parts of a step and the time in collectives never overlap: a part's clock stands while the rank stands still. That time
is cut at the moment the last rank arrives. What comes after is communication, what comes before is waiting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol

from vitscale.worker.calls import Call
from vitscale.worker.comms import Comms
from vitscale.worker.distributed import Ranks
from vitscale.worker.intervals import Interval, difference, intersection, lengths, union
from vitscale.worker.timeline import Stamp, Timeline, timeline_for
from vitscale.worker.traffic import Kind, Traffic, by_step

PHASES = ("data", "forward", "backward", "optimizer")


class StepTimes(dict[str, float]):
    """Seconds of one optimizer step.

    By phase, and `step`, from the end of the step before to the end of this one. `comm`: some collective is on the
    wire; `comm_exposed`: of that, the rank stands still; `comm_overlapped`: it does not. `wait`: the rank stands still
    and nothing is on the wire. `late`: the others stand still for this rank. What cannot be told is left out.
    """

    traffic: Mapping[Kind, Traffic] = MappingProxyType({})
    """What the step's collectives carried."""
    marks: int = 0
    """How often the clock was read for it."""


class Clock(Protocol):
    """What the loop asks of a clock."""

    def start(self) -> None:
        """The next step begins now."""

    def mark(self, phase: str) -> None:
        """The work since the last mark was `phase`."""

    def end_step(self) -> None:
        """The step is over, and the next one begins."""

    def stop(self) -> None:
        """No step follows for now."""

    def drain(self) -> list[StepTimes]:
        """Times of the steps since the last drain; may wait for the device. All ranks at once, after the same step."""


class Taken(NamedTuple):
    """One step as it was timed."""

    begin: Stamp
    marks: list[tuple[str, Stamp]]
    end: Stamp
    told: Sequence[int] = ()
    """When the host had told the device all of each part, in nanoseconds; empty where that is when it was done."""


class StepClock:
    """A clock on a device's timeline.

    Args:
        timeline: of the device.
        comms: times the collectives; None for a rank that is alone.
    """

    def __init__(self, timeline: Timeline, comms: Comms | None = None) -> None:
        self._timeline, self._comms = timeline, comms
        self._steps: list[Taken] = []
        self._begin: Stamp = None
        self._marks: list[tuple[str, Stamp]] = []
        self._work: Sequence[int | None] = ()

    def start(self) -> None:
        """The next step begins now."""
        if self._comms is not None:
            self._comms.start()
        self._marks = []
        self._begin = self._timeline.now()

    def mark(self, phase: str) -> None:
        """The work since the last mark was `phase`."""
        self._marks.append((phase, self._timeline.now()))

    def end_step(self) -> None:
        """The step is over, and the next one begins."""
        now = self._timeline.now()
        self._steps.append(Taken(self._begin, self._marks, now))
        self._marks = []
        self._begin = now

    def stop(self) -> None:
        """No step follows for now."""
        if self._comms is not None:
            self._comms.stop()

    def drain(self) -> list[StepTimes]:
        """Times of the steps since the last drain; waits for the device. What it takes itself is in no part."""
        steps, self._steps = [self._read(step) for step in self._steps], []
        backward = [one for step in steps for phase, one in _segments(step) if phase == "backward"]
        calls, blocked = self._comms.drain(backward) if self._comms is not None else ([], [])
        found = split(steps, calls, blocked, self.unread, () if "launch_gap_s" in self.unread else self._work)
        self._timeline.reuse(self._begin)
        self.mark("drain")
        return found

    def know_work(self, work_ns: Sequence[int | None]) -> None:
        """What each part of the steps since the last drain takes the device without gaps, as `launch_gap.py` tells."""
        self._work = work_ns
        if any(work is not None for work in work_ns):
            self._timeline.unread.pop("launch_gap_s", None)

    @property
    def unread(self) -> dict[str, str]:
        """Step fields that are not known -> why."""
        return {**self._timeline.unread, **(self._comms.unread if self._comms is not None else {})}

    def _read(self, step: Taken) -> Taken:
        stamps = [stamp for _, stamp in step.marks]
        begin, *at, end = self._timeline.read([step.begin, *stamps, step.end])
        marks = [(phase, stamp) for (phase, _), stamp in zip(step.marks, at, strict=True)]
        return Taken(begin, marks, end, self._timeline.told(stamps))


class NoClock:
    """Measures nothing: the control of the benchmark that asks what measuring costs."""

    def __init__(self) -> None:
        self._steps = 0

    def start(self) -> None:
        """Nothing."""

    def mark(self, phase: str) -> None:
        """Nothing."""

    def end_step(self) -> None:
        """Count."""
        self._steps += 1

    def stop(self) -> None:
        """Nothing."""

    def drain(self) -> list[StepTimes]:
        """Empty times, one per step."""
        steps, self._steps = self._steps, 0
        return [StepTimes(step=float("nan")) for _ in range(steps)]


def clock_for(ranks: Ranks, offset_ns: int = 0, error_ns: int = 0) -> StepClock:
    """The clock that is right for a rank's device; offset and error as in `Comms`."""
    timeline = timeline_for(ranks.device)
    if ranks.world_size == 1:
        return StepClock(timeline)
    return StepClock(timeline, Comms(timeline, ranks.device, offset_ns, error_ns))


def split(
    steps: Sequence[Taken],
    calls: Sequence[Call],
    blocked: Sequence[Interval],
    unread: dict[str, str],
    work_ns: Sequence[int | None] = (),
) -> list[StepTimes]:
    """Where the time of steps went.

    Args:
        steps: one after another, in nanoseconds.
        calls: the collectives of this rank.
        blocked: when it stood still in them.
        unread: fields of a step's record that are not to be told.
        work_ns: what each part of a step takes the device without gaps; None where that is not known, empty where
            the host is the device.
    """
    if not steps:
        return []
    stood, wires = union(blocked), union(one.wire for one in calls if one.wire)
    running = difference([(steps[0].begin, steps[-1].end)], stood)
    segments = [one for step in steps for one in _segments(step)]
    of_all = iter(lengths(running, [one for _, one in segments]))
    worked = [[next(of_all) for _ in step.marks] for step in steps]
    gaps = [_gaps(step, of_step, work_ns) for step, of_step in zip(steps, worked, strict=True)]
    bounds = [(step.begin, step.end) for step in steps]
    exposed = intersection(stood, wires)
    of_steps = {
        "step": [end - begin for begin, end in bounds],
        "comm": lengths(wires, bounds),
        "comm_exposed": lengths(exposed, bounds),
        "comm_overlapped": lengths(difference(wires, exposed), bounds),
        "wait": lengths(difference(stood, exposed), bounds),
        "late": lengths(union(one.late for one in calls if one.late), bounds),
        "launch_gap": [sum(of_step) for of_step in gaps],
    }
    told = {name: values for name, values in of_steps.items() if f"{name}_s" not in unread}
    found = []
    for number, (step, traffic) in enumerate(zip(steps, by_step(bounds, calls), strict=True)):
        times = StepTimes({name: values[number] / 1e9 for name, values in told.items()})
        for (phase, _), took, gap in zip(step.marks, worked[number], gaps[number], strict=True):
            times[phase] = times.get(phase, 0.0) + (took - gap) / 1e9
        times.traffic, times.marks = traffic, len(step.marks) + 1
        found.append(times)
    return found


def _gaps(step: Taken, worked: Sequence[int], work_ns: Sequence[int | None]) -> list[int]:
    """For how long of each part of a step the device had nothing to do, since the host was still preparing it.

    What the part took beyond its work, but no more than the time for which the host was still preparing it when the
    device had already begun: a device that has more than enough to do has no gap, however long it takes.
    """
    if len(work_ns) != len(worked):
        return [0] * len(worked)
    of_parts = zip(_segments(step), worked, step.told, work_ns, strict=True)
    return [
        0 if work is None else max(0, min(took - work, min(told, end) - begin))
        for (_, (begin, end)), took, told, work in of_parts
    ]


def _segments(step: Taken) -> list[tuple[str, Interval]]:
    """The parts of a step in order, each from the mark before it to its own."""
    begins = [step.begin, *(at for _, at in step.marks)]
    return [(phase, (begin, at)) for begin, (phase, at) in zip(begins, step.marks, strict=False)]
