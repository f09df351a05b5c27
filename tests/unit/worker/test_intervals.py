"""Arithmetic of intervals, against sets of nanoseconds."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from vitscale.worker.intervals import difference, intersection, lengths, union

INTERVALS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)
EDGES = st.lists(st.integers(0, 60), min_size=2, max_size=12).map(sorted)


def covered(intervals):
    return {moment for begin, end in intervals for moment in range(begin, end)}


def is_disjoint(intervals):
    edges = [edge for one in intervals for edge in one]
    return all(before < after for before, after in itertools.pairwise(edges))


@given(INTERVALS)
def test_a_union_covers_what_any_interval_covers(some):
    assert covered(union(some)) == covered(some)
    assert is_disjoint(union(some))


@given(INTERVALS, INTERVALS)
def test_intersection_and_difference_part_a_list_in_two(some, others):
    left, right = union(some), union(others)
    both, rest = intersection(left, right), difference(left, right)
    assert covered(both) == covered(left) & covered(right)
    assert covered(rest) == covered(left) - covered(right)
    assert is_disjoint(both)
    assert is_disjoint(rest)


@given(INTERVALS, EDGES)
def test_lengths_are_what_lies_inside_each_bound(some, edges):
    bounds = list(itertools.pairwise(edges))
    intervals = union(some)
    assert lengths(intervals, bounds) == [len(covered(intervals) & set(range(*bound))) for bound in bounds]
    assert lengths(intervals, bounds[::2]) == lengths(intervals, bounds)[::2]
