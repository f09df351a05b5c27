"""Arithmetic of time intervals: whole nanoseconds, `(begin, end)`.

A list is *disjoint* where its intervals are in order and neither overlap nor touch nor are empty. `union` makes it so,
and all else takes and gives such lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Interval = tuple[int, int]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The time that any of the intervals covers, disjoint; those that end before they begin cover none."""
    joined: list[Interval] = []
    for begin, end in sorted(intervals):
        if end <= begin:
            continue
        if joined and begin <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return joined


def intersection(left: Sequence[Interval], right: Sequence[Interval]) -> list[Interval]:
    """The time that both disjoint lists cover."""
    common: list[Interval] = []
    i = j = 0
    while i < len(left) and j < len(right):
        begin, end = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if begin < end:
            common.append((begin, end))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return common


def difference(left: Sequence[Interval], right: Sequence[Interval]) -> list[Interval]:
    """The time that the first disjoint list covers and the second does not."""
    if not left:
        return []
    first, last = left[0][0], left[-1][1]
    edges = [first, *(edge for one in intersection([(first, last)], right) for edge in one), last]
    holes = [(begin, end) for begin, end in zip(edges[::2], edges[1::2], strict=True) if begin < end]
    return intersection(left, holes)


def lengths(intervals: Sequence[Interval], bounds: Sequence[Interval]) -> list[int]:
    """How much of each of the bounds a disjoint list covers.

    Args:
        intervals: disjoint.
        bounds: in order, none overlapping another; they may touch or be empty.
    """
    found, i = [], 0
    for begin, end in bounds:
        while i < len(intervals) and intervals[i][1] <= begin:
            i += 1
        covered, j = 0, i
        while j < len(intervals) and intervals[j][0] < end:
            covered += min(end, intervals[j][1]) - max(begin, intervals[j][0])
            j += 1
        found.append(covered)
    return found
