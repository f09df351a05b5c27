"""From the timer records of one rank to step lines.

1. A step's parts are the sums over its `grad_accum` micro-step records; where the log has whole-step records only,
   those. Host timers are meant: DeepSpeed synchronises the device at each.
2. `comm_and_wait_s` is DeepSpeed's `allreduce` timer, `backward_s` its `inner` one, `optimizer_s` its `step` one.
3. `step_s` is the time from the end of the step before to the end of this one by the log's clock, so that loading of
   images and all else between the timers is in it. It is the sum of the timed parts instead where a line has no time,
   for the first step, after a damaged record, where the clock says less than half of the parts, and after a pause (an
   evaluation, a checkpoint): more than `PAUSE` times the median.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from vitscale.importers.deepspeed_lines import Timing
from vitscale.records.schema import StepRecord

PAUSE = 5.0
"""Times the median from one step to the next: longer ones are pauses, not steps."""

WARMUP_STEPS = 3
"""First steps that are not counted: as many as a study leaves out unless it says otherwise."""

_WIDTH = 6


@dataclass
class RankTimings:
    """All records of one rank, packed: a long log has millions."""

    micro: array[float] = field(default_factory=lambda: array("d"))
    whole: array[float] = field(default_factory=lambda: array("d"))
    between: list[int] = field(default_factory=list)
    """Micro-step records before each whole-step record."""
    cuts: set[int] = field(default_factory=set)
    """Micro-step records after which one was damaged or lost."""
    whole_cuts: set[int] = field(default_factory=set)
    _since: int = 0

    def add(self, timing: Timing) -> None:
        """Take a record."""
        nan = float("nan")
        allreduce = nan if timing.allreduce_s is None else timing.allreduce_s
        stamp = nan if timing.stamp_s is None else timing.stamp_s
        target = self.micro if timing.micro else self.whole
        target.extend((stamp, timing.forward_s, timing.backward_s, allreduce, timing.step_s, sum(_told(timing))))
        if timing.micro:
            self._since += 1
        else:
            self.between.append(self._since)
            self._since = 0

    def cut(self) -> None:
        """A record was damaged here: what follows does not follow directly."""
        self.cuts.add(len(self.micro) // _WIDTH)
        self.whole_cuts.add(len(self.whole) // _WIDTH)

    @property
    def grad_accum(self) -> int | None:
        """Micro-steps per step as the records show it: the most usual number between whole-step records."""
        counts = Counter(count for count in self.between if count)
        return counts.most_common(1)[0][0] if counts else None


class Steps(NamedTuple):
    """Step lines of a rank, and how their time was told."""

    records: list[StepRecord]
    by_clock: int
    """Steps whose `step_s` is from the log's clock; the rest are sums of parts."""


class _Step(NamedTuple):
    stamp_s: float
    forward_s: float
    backward_s: float
    allreduce_s: float
    optimizer_s: float
    parts_s: float
    follows: bool
    """Whether it directly follows the step before."""


def step_records(rank: int, timings: RankTimings, grad_accum: int, images: int | None) -> Steps:
    """Step lines of one rank.

    Args:
        rank: the rank.
        timings: its records.
        grad_accum: micro-steps per step.
        images: of this rank per step; None is not told.
    """
    steps = list(_steps(timings, grad_accum))
    gaps = [later.stamp_s - earlier.stamp_s for earlier, later in pairwise(steps)]
    told = [gap for gap, step in zip(gaps, steps[1:], strict=True) if step.follows and gap > 0]
    longest = PAUSE * median(told) if told else 0.0
    records, by_clock = [], 0
    for number, step in enumerate(steps):
        gap = gaps[number - 1] if number else float("nan")
        # Comparisons with a time that is not told (nan) are false.
        clocked = step.follows and step.parts_s / 2 <= gap <= longest and gap > 0
        by_clock += clocked
        step_s = gap if clocked else step.parts_s
        if step_s > 0:
            records.append(_record(rank, number, step, step_s, images))
    return Steps(records, by_clock)


def _record(rank: int, number: int, step: _Step, step_s: float, images: int | None) -> StepRecord:
    return StepRecord(
        step=number,
        window="warmup" if number < WARMUP_STEPS else "steady",
        rank=rank,
        loss=None,
        images=images,
        step_s=round(step_s, 6),
        data_s=None,
        forward_s=round(step.forward_s, 9),
        backward_s=round(step.backward_s, 9),
        optimizer_s=round(step.optimizer_s, 9),
        comm_exposed_s=None,
        wait_s=None,
        comm_and_wait_s=None if step.allreduce_s != step.allreduce_s else round(step.allreduce_s, 9),
    )


def _steps(timings: RankTimings, grad_accum: int) -> Iterator[_Step]:
    if not timings.micro:
        yield from _grouped(timings.whole, 1, timings.whole_cuts)
    else:
        yield from _grouped(timings.micro, grad_accum, timings.cuts | _ends(timings, grad_accum))


def _ends(timings: RankTimings, grad_accum: int) -> set[int]:
    """Positions at which a step ended with too few micro-steps before it: some were lost without a trace."""
    position, found = 0, set()
    for count in timings.between:
        position += count
        if count % grad_accum:
            found.add(position)
    return found


def _grouped(values: array[float], size: int, cuts: set[int]) -> Iterator[_Step]:
    """Sums of `size` records each; a group that a cut interrupts is left out, and what comes after does not follow."""
    follows, start, count = False, 0, len(values) // _WIDTH
    while start + size <= count:
        if start in cuts:
            follows = False
        inside = [cut for cut in range(start + 1, start + size) if cut in cuts] if size > 1 else []
        if inside:
            start, follows = inside[-1], False
            continue
        rows = [values[_WIDTH * index : _WIDTH * (index + 1)] for index in range(start, start + size)]
        forward, backward, allreduce, update, parts = (sum(row[column] for row in rows) for column in range(1, _WIDTH))
        yield _Step(rows[-1][0], forward, backward, allreduce, update, parts, follows)
        start, follows = start + size, True


def _told(timing: Timing) -> Iterator[float]:
    yield from (timing.forward_s, timing.backward_s, timing.allreduce_s or 0.0, timing.step_s)
