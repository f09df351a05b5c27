"""Where a device is in time, told without waiting for it: stamps that are taken in passing and read at a drain.

The CPU works when it is told to, so its stamp is a monotonic clock. CUDA works later than it is told to, so its stamp
is an event in the current stream; read against one moment that host and device share, it is a time of the same clock.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch

Stamp = Any
"""What `now` gives: nanoseconds, or what becomes nanoseconds in `read`."""


_NOT_TIMED = (
    "what a step takes the device without gaps is timed where a run measures, not where it trains, in fp16 on several "
    "ranks, or where waiting for communication is not told"
)


class Timeline(Protocol):
    """What clock and collectives ask of a device."""

    unread: dict[str, str]
    """Step fields that cannot be told on such a device -> why."""

    def now(self) -> Stamp:
        """This moment of the device's work."""

    def foreground(self) -> bool:
        """Whether the step itself waits for what is done now, rather than a stream beside it."""

    def read(self, stamps: Sequence[Stamp]) -> list[int]:
        """Nanoseconds of this host's monotonic clock; may wait for the device."""

    def told(self, stamps: Sequence[Stamp]) -> list[int]:
        """When the host had told the device all that comes before, on the same clock."""

    def reuse(self, kept: Stamp) -> None:
        """Nobody needs the stamps taken until now, `kept` aside."""


class HostTimeline:
    """For devices that work synchronously."""

    def __init__(self) -> None:
        self.unread: dict[str, str] = {}

    def now(self) -> int:
        """Monotonic nanoseconds."""
        return time.perf_counter_ns()

    def foreground(self) -> bool:
        """Always."""
        return True

    def read(self, stamps: Sequence[Stamp]) -> list[int]:
        """The stamps themselves."""
        return list(stamps)

    def told(self, stamps: Sequence[Stamp]) -> list[int]:
        """The same: it has been done as it was told."""
        return list(stamps)

    def reuse(self, kept: Stamp) -> None:
        """Nothing: numbers are not reused."""


class Recorded(NamedTuple):
    """An event, and when the host had recorded it."""

    event: torch.cuda.Event
    host_ns: int


class CudaTimeline:
    """CUDA events, kept in a pool."""

    def __init__(self) -> None:
        self.unread = {"launch_gap_s": _NOT_TIMED}
        self._pool: list[torch.cuda.Event] = []
        self._taken: list[Recorded] = []
        self._stream = torch.cuda.current_stream()

    def now(self) -> Recorded:
        """An event in the current stream."""
        event = self._pool.pop() if self._pool else torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        stamp = Recorded(event, time.perf_counter_ns())
        self._taken.append(stamp)
        return stamp

    def foreground(self) -> bool:
        """Whether the current stream is the one that was current when the launch began."""
        return bool(torch.cuda.current_stream() == self._stream)

    def read(self, stamps: Sequence[Stamp]) -> list[int]:
        """Each event by its distance from the one before: events count milliseconds in 24 bits."""
        torch.cuda.synchronize()
        anchor = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        anchor.record()
        anchor.synchronize()
        at, last, found = time.perf_counter_ns(), anchor, []
        for event, _ in reversed(stamps):
            at -= round(event.elapsed_time(last) * 1e6)
            last = event
            found.append(at)
        return found[::-1]

    def told(self, stamps: Sequence[Stamp]) -> list[int]:
        """When each was recorded."""
        return [stamp.host_ns for stamp in stamps]

    def reuse(self, kept: Stamp) -> None:
        """Back into the pool."""
        self._pool += [stamp.event for stamp in self._taken if stamp is not kept]
        self._taken = [stamp for stamp in self._taken if stamp is kept]


def timeline_for(device: torch.device) -> Timeline:
    """The timeline that is right for a device."""
    return CudaTimeline() if device.type == "cuda" else HostTimeline()
