"""What communication and waiting cost, a third way: what torch's profiler saw in a few steps after the steady window.

Collectives are spans on a thread of the backend or kernels of NCCL, from when they are begun to their end on this rank.
Computation is torch's own operators on the thread that takes the steps, on CUDA the other kernels. What the first cover
and the second do not, nothing hides. Spans of autograd are no computation: hooks of an engine stand still inside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from vitscale.config.runspec import RunSpec
from vitscale.records.schema import Overlap
from vitscale.worker import profile
from vitscale.worker.comms import OPERATIONS
from vitscale.worker.intervals import Interval, difference, intersection, lengths, union
from vitscale.worker.silence import LARGEST_SHARE

MOST_MICRO_STEPS = 16
"""Of a step: with more, what the profiler keeps of a few steps is not small any more."""
_ISSUED = {f"c10d::{operation}" for operation in OPERATIONS}
_BACKENDS = ("gloo:", "mpi:")
_COLLECTIVES = ("c10d::", "_c10d_functional::")


class Span(NamedTuple):
    """One event of the profiler. Times are nanoseconds of its clock."""

    name: str
    kind: str
    """Kineto's: `cpu_op`, `user_annotation`, `kernel` …"""
    begin: int
    end: int
    thread: int = 0


def refusal(spec: RunSpec, steady_steps: int) -> str | None:
    """Why nothing is learned from profiled steps, or why none are taken for it."""
    if spec.world_size == 1:
        return "one rank sends nothing"
    if spec.device == "cpu" and spec.knobs is not None and spec.knobs.compile:
        return "the profiler does not see what compiled blocks compute on a CPU"
    if spec.measure.profile:  # these steps are taken anyway
        return None
    fewest = round(profile.STEPS / LARGEST_SHARE)
    if steady_steps < fewest:
        return f"fewer than {fewest} steady steps"
    return f"more than {MOST_MICRO_STEPS} micro-steps in a step" if spec.grad_accum > MOST_MICRO_STEPS else None


def spans(events: Sequence[profile.Event]) -> list[Span]:
    """The profiler's events as spans."""
    return [
        Span(one.name(), one.activity_type(), one.start_ns(), one.end_ns(), one.start_thread_id()) for one in events
    ]


def unseen(seen: Sequence[Span]) -> str | None:
    """Why these spans tell nothing, where they do not."""
    issued, found, window = sum(one.name in _ISSUED for one in seen), _collectives(seen), _window(seen)
    if window is None:
        return "the profiler did not see the steps"
    if any(one.kind == "kernel" and "nccl" in one.name for one in found):
        issued = 1  # NCCL may do several in one kernel
    if len(found) < issued:
        return f"the profiler saw {len(found)} of {issued} collectives"
    if any(one.end < one.begin for one in seen):
        return "the profiler's clock went backwards"
    return None if any(one.end > window[0] for one in found) else "the profiler saw no collective in the steps"


def measure(seen: Sequence[Span], device: str) -> Overlap:
    """What the spans of a few steps, of which `unseen` finds nothing to say, tell.

    Args:
        seen: of one rank.
        device: `cpu` or `cuda`.
    """
    window = _window(seen)
    assert window is not None
    wires = union((one.begin, one.end) for one in _collectives(seen))
    hidden = intersection(wires, _computing(seen, device))
    steps = len(_phases(seen, "optimizer")) - 1

    def mean_s(intervals: Sequence[Interval]) -> float:
        return lengths(intervals, [window])[0] / steps / 1e9

    return Overlap(steps=steps, step_s=mean_s([window]), comm_and_wait_s=mean_s(wires), overlapped_s=mean_s(hidden))


def _phases(seen: Sequence[Span], name: str) -> list[Span]:
    return sorted(
        (one for one in seen if one.kind == "user_annotation" and one.name == name), key=lambda one: one.begin
    )


def _window(seen: Sequence[Span]) -> Interval | None:
    """From the first images of the second step to the end of all work; the first step warms the profiler up."""
    updates = _phases(seen, "optimizer")
    data = [one.begin for one in _phases(seen, "data") if updates and one.begin >= updates[0].end]
    if len(updates) < 2 or not data:
        return None
    return data[0], max(one.end for one in seen if one.kind == "kernel" or one is updates[-1])


def _collectives(seen: Sequence[Span]) -> list[Span]:
    return [
        one
        for one in seen
        if (one.kind == "kernel" and "nccl" in one.name)
        or (one.kind == "user_annotation" and one.name.startswith(_BACKENDS))
    ]


def _computing(seen: Sequence[Span], device: str) -> list[Interval]:
    if device == "cuda":
        return union((one.begin, one.end) for one in seen if one.kind == "kernel" and "nccl" not in one.name)
    (thread,) = {one.thread for one in _phases(seen, "optimizer")}
    here = [one for one in seen if one.thread == thread and one.kind == "cpu_op"]
    operators = union((one.begin, one.end) for one in here if one.name.startswith("aten::"))
    # An operator on a DTensor has its collectives inside.
    return difference(operators, union((one.begin, one.end) for one in here if one.name.startswith(_COLLECTIVES)))
