"""What collectives carried, by kind: counted per step, and as the lines of `collectives.jsonl`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from vitscale.cost.collectives import bus_factor
from vitscale.records.collectives import CollectiveRecord
from vitscale.worker.calls import Call
from vitscale.worker.intervals import Interval, lengths, union


class Kind(NamedTuple):
    """Calls that are told in one line: those of a kind differ less than twofold in size."""

    operation: str
    group_size: int
    bits: int
    """Of a call's bytes."""


class Traffic(NamedTuple):
    """Collectives of one kind in one step, as one rank sees them."""

    calls: int
    bytes: int
    wire_s: float | None
    """How long at least one of them was on the wire; None where ranks could not tell when they arrived."""
    asynchronous: int = 0
    """Calls after which the rank went on."""


_NONE = Traffic(0, 0, 0.0)


def by_step(bounds: Sequence[Interval], calls: Sequence[Call]) -> list[dict[Kind, Traffic]]:
    """Traffic of each step; a call belongs to the step that issued it. Barriers carry nothing and are left out.

    Args:
        bounds: of the steps, in nanoseconds.
        calls: in the order of issue.
    """
    kinds: dict[Kind, list[Call]] = {}
    for one in calls:
        if one.bytes:
            kinds.setdefault(Kind(one.operation, one.group_size, one.bytes.bit_length()), []).append(one)
    found: list[dict[Kind, Traffic]] = [{} for _ in bounds]
    for kind, same in kinds.items():
        known = all(one.last is not None for one in same)
        wires = lengths(union(one.wire for one in same if one.wire), bounds)
        at = 0
        for number, (begin, end) in enumerate(bounds):
            own = []
            while at < len(same) and same[at].arrived < end:
                own += [same[at]] if same[at].arrived >= begin else []
                at += 1
            if own:
                wire_s = wires[number] / 1e9 if known else None
                size, ahead = sum(one.bytes for one in own), sum(one.asynchronous for one in own)
                found[number][kind] = Traffic(len(own), size, wire_s, ahead)
    return found


def records(steps: Sequence[Mapping[Kind, Traffic]]) -> list[CollectiveRecord]:
    """Medians over the steps of a window, a step without calls of a kind counted as none; the largest first."""
    found = {kind: [step.get(kind, _NONE) for step in steps] for kind in {kind for step in steps for kind in step}}
    usual = [_record(kind, seen) for kind, seen in found.items() if median(one.bytes for one in seen)]
    return sorted(usual, key=lambda one: (-one.bytes_per_step, one.operation, one.group_size))


def _record(kind: Kind, steps: Sequence[Traffic]) -> CollectiveRecord:
    size = median(one.bytes for one in steps)
    times_s = [one.wire_s for one in steps if one.wire_s is not None]
    wire_s = median(times_s) if len(times_s) == len(steps) else None
    algbw = size / wire_s if wire_s else None
    return CollectiveRecord(
        operation=kind.operation,
        group_size=kind.group_size,
        calls_per_step=median(one.calls for one in steps),
        bytes_per_step=size,
        wire_s_per_step=wire_s,
        algbw_bytes_per_s=algbw,
        busbw_bytes_per_s=None if algbw is None else algbw * bus_factor(kind.operation, kind.group_size),
    )
