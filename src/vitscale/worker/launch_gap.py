"""When a device had nothing to do because the host was still preparing its work, by events between parts of a step.

What a part takes the device without such gaps is timed after the steady window: for a few steps the device is held at
the start of each part until the host has prepared all of it. `clock.py` holds the parts of the window against that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch

from vitscale.config.runspec import RunSpec
from vitscale.worker.clock import StepClock, StepTimes
from vitscale.worker.engines import Engine
from vitscale.worker.loop import Losses, run_steps
from vitscale.worker.pipeline import Batches
from vitscale.worker.silence import taken_out
from vitscale.worker.timeline import Stamp, Timeline, timeline_for

STEPS = 3
SHORTEST_S, LONGEST_S = 0.05, 0.5
"""For how long a part is held: the host prepares most in less."""
MOST_S = 10.0
"""A step whose parts would be held for longer is not taken."""
_CYCLES = 10_000_000


class Held(NamedTuple):
    """A part of a step that was held, in nanoseconds of the host's clock."""

    phase: str
    begin: int
    """When the device was let go."""
    end: int
    """When it was done."""
    prepared: int
    """When the host had prepared all of it."""


class HeldClock:
    """Holds the device at the start of each part, and tells when it was let go and when it was done.

    Args:
        timeline: of the device.
        hold: keeps the device busy for a while, without waiting for it.
    """

    def __init__(self, timeline: Timeline, hold: Callable[[], None]) -> None:
        self._timeline, self._hold = timeline, hold
        self._steps: list[list[tuple[str, Stamp, Stamp]]] = [[]]
        self._begin: Stamp = None

    def start(self) -> None:
        """The first part begins."""
        self._hold()
        self._begin = self._timeline.now()

    def mark(self, phase: str) -> None:
        """The part that ends here was `phase`."""
        self._steps[-1].append((phase, self._begin, self._timeline.now()))
        self.start()

    def end_step(self) -> None:
        """The next mark is of another step."""
        self._steps.append([])

    def stop(self) -> None:
        """Nothing."""

    def drain(self) -> list[StepTimes]:
        """None: these steps are not recorded."""
        return []

    def held(self) -> list[list[Held]]:
        """Every part of every step; waits for the device."""
        found = []
        for step in self._steps[:-1]:
            at = self._timeline.read([stamp for _, begin, end in step for stamp in (begin, end)])
            prepared = self._timeline.told([end for _, _, end in step])
            names = (phase for phase, _, _ in step)
            found.append([Held(*one) for one in zip(names, at[::2], at[1::2], prepared, strict=True)])
        return found


def time_work(
    clock: StepClock,
    engine: Engine,
    batches: Batches,
    spec: RunSpec,
    device: torch.device,
    step_s: float | None,
    beat: Callable[[str, int, int], None],
) -> str | None:
    """Let a clock know what its steps take the device without gaps. All ranks at once.

    Held steps have no collectives: in those another rank could hold this one up.

    Args:
        clock: its steps are not yet drained.
        engine: its weights are of no use afterwards.
        batches: of the engine.
        spec: the run's.
        device: the rank's.
        step_s: time of a step, in which the host prepares every part of it; None holds a part for `LONGEST_S`.
        beat: called with `held`, the number of steps taken, and how many there are.

    Returns:
        Of which parts that is not known, and why, where it is of others.
    """
    # With gradients of one rank fp16's loss scale would leave steps out.
    if (spec.precision == "fp16" and spec.world_size > 1) or "wait_s" in clock.unread:
        return None
    if not hasattr(torch.cuda, "_sleep"):  # torch's own, for its tests
        return "this torch has no kernel that holds a device"
    parts = 3 * spec.grad_accum + 1
    hold_s = LONGEST_S if step_s is None else min(max(1.5 * step_s / spec.grad_accum, SHORTEST_S), LONGEST_S)
    if parts * hold_s > MOST_S:
        return f"the {parts} parts of a step would be held for {parts * hold_s:.0f} s in all, more than {MOST_S:g} s"
    held_by = HeldClock(timeline_for(device), _spinning(hold_s))
    losses = Losses(spec.grad_accum)
    try:
        with taken_out() if spec.world_size > 1 else nullcontext():
            run_steps(
                range(STEPS),
                engine,
                batches,
                held_by,
                losses,
                spec.grad_accum,
                lambda step: beat("held", step + 1, STEPS),
            )
    except torch.OutOfMemoryError:  # a part that is prepared ahead keeps more; no rank waits for another here
        return "the device has no memory for a part that is prepared ahead of it"
    steps = held_by.held()
    clock.know_work(work_ns(steps))
    return untold(steps)


def work_ns(steps: Sequence[Sequence[Held]]) -> list[int | None]:
    """What each part of a step takes the device without gaps, in nanoseconds, by its place in the step.

    The least of the steps in which the host had prepared the part before the device was let go. None: there is no such
    step, since the host waits for the device inside the part, or has more to launch than fits its queue. Of `data` it
    is None too: whatever images make the device wait for is that part's own.
    """
    found: list[int | None] = []
    for parts in zip(*steps, strict=True):
        queued = [one.end - one.begin for one in parts if one.phase != "data" and one.prepared <= one.begin]
        found.append(min(queued, default=None))
    return found


def untold(steps: Sequence[Sequence[Held]]) -> str | None:
    """Why the gap of some parts is not known, where it is not."""
    names = [one.phase for one in steps[0]]
    without = dict.fromkeys(name for name, work in zip(names, work_ns(steps), strict=True) if work is None)
    without.pop("data", None)
    return (
        f"without the gaps of {' and '.join(without)}: the host cannot prepare all of it beforehand"
        if without
        else None
    )


def _spinning(seconds: float) -> Callable[[], None]:
    """Keeps the device busy for so long, as its clock is now."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    for _ in range(2):  # the first loads the kernel
        begin.record()
        torch.cuda._sleep(_CYCLES)  # type: ignore[no-untyped-call]
        end.record()
        end.synchronize()
    cycles = round(_CYCLES * seconds * 1e3 / begin.elapsed_time(end))
    return lambda: torch.cuda._sleep(cycles)  # type: ignore[no-untyped-call]
