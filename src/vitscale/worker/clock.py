"""Two clocks with one face: where the time of a step goes, without a synchronisation per step.

The CPU works when it is told to, so a monotonic clock read at the end of each phase is exact. CUDA works later than it
is told to, so events are recorded into the stream and read once, at a flush.
"""

from __future__ import annotations

import time
from typing import Protocol

import torch

PHASES = ("data", "forward", "backward", "optimizer")


class StepTimes(dict[str, float]):
    """Seconds by phase of one optimizer step, and `step`, from the end of the step before to the end of this one."""


class Clock(Protocol):
    """What the loop asks of a clock."""

    def start(self) -> None:
        """The next step begins now."""

    def mark(self, phase: str) -> None:
        """The work since the last mark was `phase`."""

    def end_step(self) -> None:
        """The step is over, and the next one begins."""

    def drain(self) -> list[StepTimes]:
        """Times of the steps since the last drain; may wait for the device."""


class HostClock:
    """For devices that work synchronously: monotonic nanoseconds."""

    def __init__(self) -> None:
        self._marks: list[tuple[str, int]] = []
        self._steps: list[list[tuple[str, int]]] = []
        self._begin = self._last = 0

    def start(self) -> None:
        """The next step begins now."""
        self._begin = self._last = time.perf_counter_ns()

    def mark(self, phase: str) -> None:
        """The work since the last mark was `phase`."""
        now = time.perf_counter_ns()
        self._marks.append((phase, now - self._last))
        self._last = now

    def end_step(self) -> None:
        """The step is over, and the next one begins."""
        now = time.perf_counter_ns()
        self._marks.append(("step", now - self._begin))
        self._steps.append(self._marks)
        self._marks = []
        self._begin = self._last = now

    def drain(self) -> list[StepTimes]:
        """Times of the steps since the last drain."""
        steps, self._steps = self._steps, []
        return [_summed([(phase, nanoseconds / 1e9) for phase, nanoseconds in marks]) for marks in steps]


class CudaClock:
    """CUDA events on the current stream, kept in a pool and read at a drain."""

    def __init__(self) -> None:
        self._pool: list[torch.cuda.Event] = []
        self._marks: list[tuple[str, torch.cuda.Event]] = []
        self._steps: list[tuple[torch.cuda.Event, list[tuple[str, torch.cuda.Event]]]] = []
        self._begin: torch.cuda.Event | None = None

    def start(self) -> None:
        """The next step begins now."""
        self._begin = self._event()

    def mark(self, phase: str) -> None:
        """The work since the last mark was `phase`."""
        self._marks.append((phase, self._event()))

    def end_step(self) -> None:
        """The step is over, and the next one begins."""
        assert self._begin is not None
        self._steps.append((self._begin, self._marks))
        self._begin = self._marks[-1][1]  # the step ends where its last phase ends: one event serves both
        self._marks = []

    def drain(self) -> list[StepTimes]:
        """Times of the steps since the last drain; waits for the device."""
        if not self._steps:
            return []
        torch.cuda.synchronize()
        drained = []
        for begin, marks in self._steps:
            last, pairs = begin, []
            for phase, event in marks:
                pairs.append((phase, last.elapsed_time(event) / 1e3))
                last = event
            drained.append(_summed([*pairs, ("step", begin.elapsed_time(last) / 1e3)]))
        # The last event still begins the next step.
        used = {id(event): event for begin, marks in self._steps for event in (begin, *(event for _, event in marks))}
        used.pop(id(self._begin), None)
        self._pool += used.values()
        self._steps = []
        return drained

    def _event(self) -> torch.cuda.Event:
        event = self._pool.pop() if self._pool else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


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

    def drain(self) -> list[StepTimes]:
        """Empty times, one per step."""
        steps, self._steps = self._steps, 0
        return [StepTimes(step=float("nan")) for _ in range(steps)]


def clock_for(device: torch.device) -> Clock:
    """The clock that is right for a device."""
    return CudaClock() if device.type == "cuda" else HostClock()


def _summed(pairs: list[tuple[str, float]]) -> StepTimes:
    times = StepTimes()
    for phase, seconds in pairs:
        times[phase] = times.get(phase, 0.0) + seconds
    return times
