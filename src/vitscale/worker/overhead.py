"""What measuring costs this rank: each thing that is done for the records, timed on its own after a steady window.

It is too little to be seen by comparing steps with and without, whose noise is larger. So it is done many times, in the
process that was measured, and multiplied by how often a step does it. Other work comes before each time, as in a step:
what comes again at once finds all it needs in caches, and takes a fraction.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean, median
from typing import Any

import torch
import torch.distributed as dist

from vitscale.records.schema import Overhead
from vitscale.worker.clock import StepClock, StepTimes
from vitscale.worker.comms import Comms
from vitscale.worker.distributed import Ranks
from vitscale.worker.silence import alone
from vitscale.worker.timeline import timeline_for

BLOCKS, CALLS = 11, 15
"""Blocks of each kind, and the calls of one."""
_OTHER_FLOATS = 1 << 21
"""What the other work goes through: more than a core's own caches hold."""


class Meter:
    """Times each thing once per process, after its first launch's window: no run changes what one of them costs."""

    def __init__(self) -> None:
        self._costs: Mapping[str, Any] | None = None

    def measure(
        self, steps: Sequence[StepTimes], ranks: Ranks, beat: Callable[[], None], sampling_share: float
    ) -> Overhead:
        """What was done in these steps for the sake of their records. All ranks at once.

        Args:
            steps: of the steady window.
            ranks: this rank among the others.
            beat: writes a heartbeat as each step does.
            sampling_share: of the window's time, what this rank took for samples of the devices.
        """
        if self._costs is None:
            self._costs = _costs(ranks, beat)
        traffic = [one for step in steps for one in step.traffic.values()]
        asynchronous = sum(one.asynchronous for one in traffic)
        return Overhead(
            marks=fmean(step.marks for step in steps),
            synchronous=(sum(one.calls for one in traffic) - asynchronous) / len(steps),
            asynchronous=asynchronous / len(steps),
            sampling_share=sampling_share,
            **self._costs,
        )


def _costs(ranks: Ranks, beat: Callable[[], None]) -> Mapping[str, Any]:
    """Seconds of one of each, by field."""
    clock = StepClock(timeline_for(ranks.device))
    blocks, alone_here = range(BLOCKS), ranks.world_size == 1
    return {
        "mark_s": median(_call_s(lambda: clock.mark("data")) for _ in blocks),
        "heartbeat_s": median(_call_s(beat) for _ in blocks),
        "synchronous_s": None if alone_here else _collective_s(ranks.device, asynchronous=False),
        "asynchronous_s": None if alone_here else _collective_s(ranks.device, asynchronous=True),
    }


def _collective_s(device: torch.device, *, asynchronous: bool) -> float:
    """What a collective takes longer when it is timed; an asynchronous one is waited for at once.

    Blocks with and without alternate, in a group of this rank alone: nothing is sent.
    """
    group, tensor = alone(), torch.zeros(1, device=device)
    comms = Comms(timeline_for(device), device, smallest=1)

    def send() -> None:
        work = dist.all_reduce(tensor, group=group, async_op=asynchronous)
        if work is not None:
            work.wait()

    def timed() -> float:
        comms.start()
        try:
            return _call_s(send)
        finally:
            comms.stop()

    def untimed() -> float:
        return _call_s(send)

    untimed()  # the first one makes the group's connections
    more = []
    for block in range(BLOCKS):
        took = {way: way() for way in ((timed, untimed) if block % 2 else (untimed, timed))}
        more.append(took[timed] - took[untimed])
    return median(more)


def _call_s(call: Callable[[], None]) -> float:
    """Typical time of a call that comes after other work; on CUDA the host's."""
    other, taken_s = torch.zeros(_OTHER_FLOATS), []
    for _ in range(CALLS):
        other.add_(1)
        began = time.perf_counter()
        call()
        taken_s.append(time.perf_counter() - began)
    return median(taken_s)
