"""When this rank's collectives arrived and finished, and when the last rank of each arrived.

Every collective, whoever starts it (torch.distributed's functions, DDP's reducer in C++, functional collectives of
DTensor), passes torch's dispatcher as an operator `c10d::…`. While steps are taken, a kernel in front of the backend's
notes when it was issued; `Work.wait` and `wait_tensor` note when the rank stood still for it, and its own future when
it was done. Nothing is sent for that, and outside the steps nothing is in the way.

At a drain the ranks of each group tell each other when they arrived at the collectives since the last one, in the
order of issue, which is the same on all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from vitscale.worker.calls import NEVER, Call, add_reducer_waits, compare_arrivals
from vitscale.worker.hang import BEGUN
from vitscale.worker.intervals import Interval
from vitscale.worker.timeline import Stamp, Timeline

OPERATIONS = {
    "allreduce_": ("all_reduce", 0),
    "allreduce_coalesced_": ("all_reduce", 0),
    "allgather_": ("all_gather", 0),
    "allgather_coalesced_": ("all_gather", 0),
    "allgather_into_tensor_coalesced_": ("all_gather", 0),
    "_allgather_base_": ("all_gather", 0),
    "reduce_scatter_": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "alltoall_": ("all_to_all", 1),
    "alltoall_base_": ("all_to_all", 1),
    "broadcast_": ("broadcast", 0),
    "reduce_": ("reduce", 0),
    "barrier": ("barrier", None),
}
"""Operator -> what it is, and which argument has the bytes that nccl-tests calls the size."""
_WAITS = ("wait_tensor", "wait_tensors")
_BESIDE = "the engine sends from a stream of its own, and when the step's stream waits for that one is not seen"
_UNMATCHED = "ranks of a group did not issue the same collectives: their arrivals cannot be compared"
_BACKWARDS = "a collective ended before its last rank arrived: the hosts' clocks moved apart, or one went backwards"
_TOLD_TOGETHER = ("comm_s", "comm_exposed_s", "comm_overlapped_s", "wait_s", "late_s")
"""What rests on the arrivals of others."""
IN_FRONT = "BackendSelect"
"""Key of the kernels that torch's dispatcher asks before those of the device."""
BEHIND = torch._C._dispatch_keyset_full_after(torch._C.DispatchKey.BackendSelect)
_LONGEST_S = 1.0
_APART_NS = 1_000_000
"""Clocks that are further apart than they were told to be make no figure."""
_AT_ONCE = 1 << 16
"""Collectives whose arrivals travel in one message."""


@dataclass(eq=False, slots=True)
class _Issued:
    """A collective as it is noted while steps are taken."""

    operation: str
    bytes: int
    group: str
    arrived: Stamp
    asynchronous: bool = False
    finished: Stamp | None = None
    waited: tuple[Stamp, Stamp] | None = None


class Comms:
    """Times the collectives that are issued between `start` and `stop`.

    Args:
        timeline: of the device.
        device: where arrivals lie while ranks exchange them.
        offset_ns: what has to be added to this host's clock to make it the first host's.
        error_ns: how far that may be off, on any host.
        smallest: ranks of a group whose collectives are timed; one that is alone sends nothing.
    """

    def __init__(
        self, timeline: Timeline, device: torch.device, offset_ns: int = 0, error_ns: int = 0, smallest: int = 2
    ) -> None:
        self._timeline, self._device, self._offset_ns, self._smallest = timeline, device, offset_ns, smallest
        self._apart_ns = _APART_NS + 2 * error_ns
        self._libraries: list[Any] = []
        self._listening = False
        self._groups: dict[str, dist.ProcessGroup] = {}
        self._names: dict[dist.ProcessGroup, str] = {}
        self._issued: list[_Issued] = []
        self._by_work: dict[int, _Issued] = {}
        self._by_memory: dict[int, _Issued] = {}
        self._latest: dist.Work | None = None
        self._awaited: _Issued | None = None
        self._others: list[tuple[Stamp, Stamp]] = []
        self.unread: dict[str, str] = {}
        """Step fields that are not known -> why."""

    def start(self) -> None:
        """Time what is issued from now on."""
        library: Any = torch.library.Library
        c10d, functional = library("c10d", "IMPL"), library("_c10d_functional", "IMPL")
        for name, (operation, sized) in OPERATIONS.items():
            kernel = self._issue(getattr(torch.ops.c10d, name).default, operation, sized)
            c10d.impl(name, kernel, IN_FRONT, with_keyset=True)
        for name in (one for one in _WAITS if hasattr(torch.ops._c10d_functional, one)):
            kernel = self._wait_for_tensors(getattr(torch.ops._c10d_functional, name).default)
            functional.impl(name, kernel, IN_FRONT, with_keyset=True)
        self._libraries = [c10d, functional]
        self._wait = dist.Work.wait
        dist.Work.wait = self._wait_for_work(self._wait)  # type: ignore[method-assign]
        self._listening = True

    def stop(self) -> None:
        """Leave torch as it was."""
        self._listening = False
        for library in self._libraries:
            library._destroy()
        if self._libraries:
            dist.Work.wait = self._wait  # type: ignore[method-assign]
        self._libraries = []

    def _issue(self, operator: Any, operation: str, sized: int | None) -> Callable[..., Any]:
        """The kernel of an operator that starts a collective."""
        places = [argument.name for argument in operator._schema.arguments]
        group_at, asynchronous_at = places.index("process_group"), places.index("async_op")
        redispatch, group_of, now = operator._handle.redispatch_boxed, dist.ProcessGroup.unbox, self._timeline.now
        names = self._names

        def kernel(keys: Any, *arguments: Any) -> Any:
            BEGUN.count += 1
            group = group_of(arguments[group_at])
            name = names[group] if group in names else self._name(group)
            if not name or not self._listening:
                return redispatch(keys & BEHIND, *arguments)
            one = _Issued(operation, 0 if sized is None else _bytes(arguments[sized]), name, now())
            self._issued.append(one)
            returned = redispatch(keys & BEHIND, *arguments)
            if len(arguments) > asynchronous_at and not arguments[asynchronous_at]:
                self._follow_to_its_wait(one)
            else:
                self._follow(one, returned[-1] if isinstance(returned, tuple) else returned)
                self._by_memory[_address(arguments[0])] = one
            return returned

        return kernel

    def _name(self, group: dist.ProcessGroup) -> str:
        """The name of a group whose collectives are timed, else nothing; asked for once."""
        name = self._names[group] = group.group_name if group.size() >= self._smallest else ""
        if name:
            self._groups[name] = group
        return name

    def _follow_to_its_wait(self, one: _Issued) -> None:
        """A synchronous one: its caller's next call is `wait`, which ends when it does."""
        if self._device.type == "cuda":  # NCCL has put the current stream behind it
            one.finished = self._timeline.now()
            self._stood_still(one, one.arrived, one.finished)
        else:
            one.waited = (one.arrived, one.arrived)
            self._awaited = one

    def _follow(self, one: _Issued, work: Any) -> None:
        """An asynchronous one: its future tells its end, and who waits for it is told by the object."""
        # Held until the caller has it, so that `wait` meets the same object; longer, it would hold the tensors too.
        self._latest, self._awaited = dist.Work.unbox(work), None
        self._by_work[id(self._latest)] = one
        one.asynchronous = True
        now = self._timeline.now

        def done(_future: Any) -> None:
            one.finished = now()

        self._latest.get_future().add_done_callback(done)

    def _stood_still(self, one: _Issued | None, begin: Stamp, end: Stamp) -> None:
        if not self._timeline.foreground():
            self.unread |= dict.fromkeys(("comm_exposed_s", "comm_overlapped_s", "wait_s", "late_s"), _BESIDE)
        elif one is None:
            self._others.append((begin, end))
        else:
            one.waited = (begin, end)

    def _wait_for_work(self, wait: Callable[..., bool]) -> Callable[..., bool]:
        """`Work.wait`, timed."""
        now = self._timeline.now

        def timed(work: dist.Work, *arguments: Any, **named: Any) -> bool:
            if not self._listening:
                return wait(work, *arguments, **named)
            one, self._awaited = self._awaited, None
            begin = one.arrived if one else now()
            waited = wait(work, *arguments, **named)
            self._stood_still(one or self._by_work.pop(id(work), None), begin, now())
            return waited

        return timed

    def _wait_for_tensors(self, operator: Any) -> Callable[..., Any]:
        """The kernel of an operator that waits for what functional collectives returned."""

        def kernel(keys: Any, tensors: Any) -> Any:
            if not self._listening:
                return operator.redispatch(keys & BEHIND, tensors)
            begin = self._timeline.now()
            returned = operator.redispatch(keys & BEHIND, tensors)
            self._stood_still(self._by_memory.pop(_address(tensors), None), begin, self._timeline.now())
            return returned

        return kernel

    def drain(self, phases: Sequence[Interval]) -> tuple[list[Call], list[Interval]]:
        """The collectives since the last drain, and when this rank stood still. All ranks at once.

        Args:
            phases: backward passes, at whose end DDP's reducer waits in C++ for what it issued in them.
        """
        issued, self._issued, others, self._others = self._issued, [], self._others, []
        self._by_work.clear()
        self._by_memory.clear()
        self._latest = self._awaited = None
        listening, self._listening = self._listening, False
        _let_finish(issued)
        calls = self._read(issued)
        add_reducer_waits(calls, phases)
        for name in sorted(self._groups):  # one order on all ranks, whichever groups they are in
            if not self._meet(name, [one for one in calls if one.group == name]):
                self.unread |= dict.fromkeys(_TOLD_TOGETHER, _UNMATCHED)
        if any(one.backwards_ns > self._apart_ns for one in calls):
            self.unread |= dict.fromkeys(_TOLD_TOGETHER, _BACKWARDS)
        edges = self._timeline.read([stamp for pair in others for stamp in pair])
        self._listening = listening
        blocked = [one.blocked for one in calls if one.blocked is not None]
        return calls, [*blocked, *zip(edges[::2], edges[1::2], strict=True)]

    def _read(self, issued: Sequence[_Issued]) -> list[Call]:
        stamps = [
            stamp
            for one in issued
            for stamp in (one.arrived, one.finished or one.arrived, *(one.waited or (one.arrived, one.arrived)))
        ]
        at = self._timeline.read(stamps)
        calls = []
        for number, one in enumerate(issued):
            arrived, finished, begin, end = at[4 * number : 4 * number + 4]
            ends = [*([finished] if one.finished else []), *([end] if one.waited else [])]
            blocked = (begin, end) if one.waited else None
            size = self._groups[one.group].size()
            done = min(ends, default=None)
            told = Call(
                one.operation, one.bytes, one.group, size, arrived, done, blocked, asynchronous=one.asynchronous
            )
            calls.append(told)
        return calls

    def _meet(self, group: str, calls: Sequence[Call]) -> bool:
        """Learn from the others of a group when they arrived at these collectives; whether they have the same."""
        handle = self._groups[group]
        counts = torch.tensor([len(calls), -len(calls)], device=self._device)
        dist.all_reduce(counts, dist.ReduceOp.MAX, group=handle)
        most, fewest = counts.tolist()
        if most != -fewest:
            return False
        for first in range(0, len(calls), _AT_ONCE):
            some = calls[first : first + _AT_ONCE]
            own = torch.tensor(
                [[one.arrived for one in some], [one.blocked[0] if one.blocked else NEVER for one in some]]
            )
            own[own != NEVER] += self._offset_ns
            rows = [torch.empty_like(own, device=self._device) for _ in range(handle.size())]
            dist.all_gather(rows, own.to(self._device), group=handle)
            compare_arrivals(some, torch.stack(rows).cpu(), dist.get_rank(handle), self._offset_ns)
        return True


def _let_finish(issued: Sequence[_Issued]) -> None:
    """Wait for the ends of asynchronous collectives: the threads that note them need Python's lock, which we hold."""
    deadline = time.monotonic() + _LONGEST_S
    for one in issued:
        while one.finished is None and one.waited is None and time.monotonic() < deadline:
            time.sleep(1e-4)


def _bytes(tensors: Any) -> int:
    return tensors.nbytes if isinstance(tensors, Tensor) else sum(map(_bytes, tensors))


def _address(tensors: Any) -> int:
    """Where the first of them lies."""
    return tensors.data_ptr() if isinstance(tensors, Tensor) else _address(tensors[0])
