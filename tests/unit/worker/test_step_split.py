"""The split of steps by the collectives in them: constructed times, and any times at all."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitscale.worker.calls import NEVER, Call, add_reducer_waits, compare_arrivals
from vitscale.worker.clock import Taken, split
from vitscale.worker.traffic import Kind, records

MS = 1_000_000
PHASES = ("data", "forward", "backward", "optimizer")


def call(arrived, finished, *, last=None, blocked=None, late=None, operation="all_reduce", size=1000):
    last = arrived if last is None else last
    pair = [tuple(MS * edge for edge in one) if one else None for one in (blocked, late)]
    return Call(operation, size, "0", 2, MS * arrived, MS * finished, pair[0], MS * last, pair[1])


def step(begin, *ends):
    """A step of four parts, in milliseconds."""
    return Taken(MS * begin, [(phase, MS * end) for phase, end in zip(PHASES, ends, strict=True)], MS * ends[-1])


def milliseconds(times):
    return {name: pytest.approx(value / 1e3) for name, value in times.items()}


def blocked(calls):
    return [one.blocked for one in calls if one.blocked]


def test_a_synchronous_collective_is_waiting_until_the_last_rank_arrives_and_communication_after():
    calls = [call(40, 60, last=52, blocked=(40, 60))]
    (times,) = split([step(0, 10, 30, 70, 90)], calls, blocked(calls), {})
    assert times == milliseconds(
        {"data": 10, "forward": 20, "backward": 20, "optimizer": 20, "step": 90}
        | {"comm": 8, "comm_exposed": 8, "comm_overlapped": 0, "wait": 12, "late": 0, "launch_gap": 0}
    )


def test_what_runs_beside_computation_is_overlapped_and_leaves_the_parts_alone():
    calls = [call(35, 50), call(45, 80, blocked=(70, 80))]
    (times,) = split([step(0, 10, 30, 80, 90)], calls, blocked(calls), {})
    assert times == milliseconds(
        {"data": 10, "forward": 20, "backward": 40, "optimizer": 10, "step": 90}
        | {"comm": 45, "comm_exposed": 10, "comm_overlapped": 35, "wait": 0, "late": 0, "launch_gap": 0}
    )


def test_a_collective_over_the_end_of_a_step_is_in_both_steps_and_its_bytes_in_the_first():
    calls = [call(80, 130)]
    first, second = split([step(0, 10, 30, 70, 90), step(90, 100, 110, 120, 140)], calls, [], {})
    assert (first["comm"], second["comm"]) == pytest.approx((0.01, 0.04))
    assert (len(first.traffic), len(second.traffic)) == (1, 0)


def test_what_is_not_known_is_left_out():
    calls = [call(40, 60, blocked=(40, 60))]
    unread = dict.fromkeys(("comm_exposed_s", "comm_overlapped_s", "wait_s", "late_s"), "told on the wrong stream")
    (times,) = split([step(0, 10, 30, 70, 90)], calls, blocked(calls), unread)
    assert {"comm_exposed", "wait", "late", "comm_overlapped"}.isdisjoint(times)
    assert times["comm"] == pytest.approx(0.02)


TIMES = st.integers(0, 1000)
CALLS = st.lists(st.tuples(TIMES, TIMES, TIMES, st.none() | st.tuples(TIMES, TIMES)), max_size=20)


@given(CALLS, st.lists(TIMES, min_size=9, max_size=9).map(sorted))
def test_parts_and_blocked_time_make_up_the_step_whatever_the_times(some, edges):
    calls = [Call("all_reduce", 8, "0", 2, at, end, blocked, last) for at, end, last, blocked in some]
    steps = [
        Taken(edges[at], list(zip(PHASES, edges[at + 1 : at + 5], strict=True)), edges[at + 4]) for at in range(0, 8, 4)
    ]
    for times in split(steps, calls, blocked(calls), {}):
        assert times["comm_overlapped"] >= 0
        assert times["comm_exposed"] + times["comm_overlapped"] == pytest.approx(times["comm"], abs=1e-12)
        parts = sum(times[phase] for phase in PHASES)
        assert parts + times["comm_exposed"] + times["wait"] == pytest.approx(times["step"], abs=1e-12)


def test_the_reducer_waits_from_its_last_bucket_for_each_that_is_not_there():
    calls = [call(10, 20), call(15, 40), call(30, 45), call(55, 58), call(70, 75, blocked=(72, 75))]
    add_reducer_waits(calls, [(5 * MS, 44 * MS), (50 * MS, 90 * MS)])
    assert [one.blocked and (one.blocked[0] // MS, one.blocked[1] // MS) for one in calls] == [
        None, (30, 40), (30, 44), (55, 58), (72, 75),
    ]  # fmt: skip


def compared(told, rank, offset_ns=0):
    """`last` and `late` of the collectives whose [rank, 2, call] were told."""
    calls = [call(0, 0) for _ in told[0][0]]
    for one, arrived in zip(calls, told[rank][0], strict=True):
        one.arrived = arrived - offset_ns
    compare_arrivals(calls, torch.tensor(told), rank, offset_ns)
    return [(one.last, one.late) for one in calls]


TOLD = [
    [[100, 500], [100, NEVER]],
    [[130, 520], [130, 560]],
    [[190, 580], [190, 580]],
]


def test_the_last_rank_is_late_from_when_the_others_began_to_stand_still():
    assert compared(TOLD, 2) == [(190, (100, 190)), (580, (560, 580))]
    assert compared(TOLD, 0) == [(190, None), (580, None)]


def test_nobody_is_late_where_nobody_stood_still():
    assert compared([[[100], [NEVER]], [[190], [NEVER]]], 1) == [(190, None)]


def test_a_clock_that_is_seconds_off_changes_nothing():
    offset_ns = -7_000_000_000
    ((last, late), _) = compared(TOLD, 2, offset_ns)
    assert (last + offset_ns, late[0] + offset_ns, late[1] + offset_ns) == (190, 100, 190)


def test_lines_are_medians_over_steps_and_the_largest_comes_first():
    steps = [step(at, at + 10, at + 20, at + 80, at + 90) for at in (0, 90, 180)]
    calls = [call(at + 40, at + 40 + took, size=4000) for at, took in ((0, 10), (90, 20), (180, 40))]
    calls += [call(at + 5, at + 6, operation="all_gather", size=size) for at in (0, 90) for size in (300, 310, 9)]
    calls += [call(at + 7, at + 8, operation="barrier", size=0) for at in (0, 90)]
    calls.sort(key=lambda one: one.arrived)
    lines = records([times.traffic for times in split(steps, calls, [], {})])
    assert [(one.operation, one.calls_per_step, one.bytes_per_step) for one in lines] == [
        ("all_reduce", 1, 4000), ("all_gather", 2, 610), ("all_gather", 1, 9),
    ]  # fmt: skip
    assert lines[0].wire_s_per_step == pytest.approx(0.02)
    assert lines[0].algbw_bytes_per_s == pytest.approx(200_000)
    assert lines[0].busbw_bytes_per_s == pytest.approx(200_000)  # 2(N-1)/N is 1 for two ranks
    assert lines[1].wire_s_per_step == pytest.approx(0.001)
    assert lines[1].busbw_bytes_per_s == pytest.approx(lines[1].algbw_bytes_per_s / 2)


def test_a_rare_collective_has_no_line():
    steps = [step(at, at + 10, at + 20, at + 80, at + 90) for at in (0, 90, 180)]
    traffic = [times.traffic for times in split(steps, [call(40, 50)], [], {})]
    assert [*traffic[0]] == [Kind("all_reduce", 2, 10)]
    assert records(traffic) == []
