"""A collective as one rank timed it, and what the arrivals of the others make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vitscale.worker.intervals import Interval

NEVER = torch.iinfo(torch.int64).max
"""In place of the moment at which a rank began to stand still, where it did not."""

_NEED_ALL = ("all_reduce", "all_gather", "reduce_scatter")
"""Done on no rank before all have arrived; the root of a broadcast may be."""


@dataclass(eq=False, slots=True)
class Call:
    """One collective. Times are nanoseconds of this host's monotonic clock."""

    operation: str
    """`all_reduce`, `all_gather`, `reduce_scatter`, `all_to_all`, `broadcast`, `reduce` or `barrier`."""
    bytes: int
    """Its size as nccl-tests has it."""
    group: str
    """Name of the ranks that take part, the same on all of them."""
    group_size: int
    """How many these are."""
    arrived: int
    """When this rank issued it; on CUDA, when the stream came to it."""
    finished: int | None
    """When it was done here; None where that was not seen."""
    blocked: Interval | None
    """In which this rank stood still for it; None where it never did."""
    last: int | None = None
    """When the last rank arrived; None where the ranks could not tell each other."""
    late: Interval | None = None
    """Where this rank came last: from the median of when the others began to stand still, to its arrival."""
    asynchronous: bool = False
    """Whether this rank went on when it was issued."""

    @property
    def backwards_ns(self) -> int:
        """For how long this rank had what it needs from all others before the last of them arrived, as clocks say."""
        if self.operation not in _NEED_ALL or self.last is None or self.finished is None:
            return 0
        return max(0, self.last - self.finished)

    @property
    def wire(self) -> Interval | None:
        """From the last arrival to the end; None where either is not known."""
        return None if self.last is None or self.finished is None else (self.last, self.finished)


def compare_arrivals(calls: Sequence[Call], told: Tensor, rank: int, offset_ns: int) -> None:
    """Fill in `last` and `late` of the calls.

    Args:
        calls: of this rank.
        told: int64 [rank, 2, call]: when each rank arrived and when it began to stand still, `NEVER` where it did not.
        rank: this one, in the group.
        offset_ns: how much the clock of `told` is ahead of this host's.
    """
    arrived, needed = told[:, 0], told.amax(1)
    others = torch.arange(len(told)) != rank
    before, began = arrived[others].amax(0).tolist(), needed[others].median(0).values.tolist()
    for one, last, other, stood in zip(calls, arrived.amax(0).tolist(), before, began, strict=True):
        one.last = last - offset_ns
        one.late = (stood - offset_ns, one.arrived) if other < last and stood < last else None


def add_reducer_waits(calls: Sequence[Call], phases: Sequence[Interval]) -> None:
    """Note where DDP's reducer, in C++, stood still: after its last bucket of a backward pass, until each was there.

    Args:
        calls: in the order of issue; those in which nobody was seen to wait are the reducer's.
        phases: backward passes, one after another.
    """
    left = [one for one in calls if one.blocked is None and one.finished is not None]
    first = 0
    for begin, end in phases:
        first = next((at for at in range(first, len(left)) if left[at].arrived >= begin), len(left))
        after = next((at for at in range(first, len(left)) if left[at].arrived >= end), len(left))
        sent, first = left[first:after], after
        for one in sent:
            if one.finished is not None and one.finished > sent[-1].arrived:
                one.finished = min(one.finished, end)
                one.blocked = (sent[-1].arrived, one.finished)
