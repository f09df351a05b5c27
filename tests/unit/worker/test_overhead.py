"""What measuring costs, on a process group that sends nothing and a clock that is moved by hand."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from vitscale.worker import overhead, silence
from vitscale.worker.clock import StepTimes
from vitscale.worker.comms import Comms
from vitscale.worker.distributed import Ranks
from vitscale.worker.timeline import HostTimeline
from vitscale.worker.traffic import Kind, Traffic

SLOW_S = 0.25


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(overhead, "BLOCKS", 3)
    monkeypatch.setattr(overhead, "_OTHER_FLOATS", 1)


@pytest.fixture
def group():
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    silence.alone.cache_clear()
    dist.destroy_process_group()


def ranks(world_size):
    return Ranks(0, 0, world_size, world_size, torch.device("cpu"))


def steps(*calls):
    found = []
    for count in calls:
        one = StepTimes(step=0.1)
        one.marks, one.traffic = 5, {Kind("all_reduce", 2, 3): Traffic(count, 4, None, count - 1)} if count else {}
        found.append(one)
    return found


@pytest.fixture
def slow(monkeypatch):
    """Takes `SLOW_S`; nothing else takes any time."""
    time = SimpleNamespace(now=0.0)
    time.perf_counter = lambda: time.now
    monkeypatch.setattr(overhead, "time", time)

    def slow():
        time.now += SLOW_S

    return slow


def test_a_rank_that_is_alone_counts_its_marks_and_its_heartbeats(slow):
    found = overhead.Meter().measure(steps(0, 0), ranks(1), slow, 0.25)
    assert (found.marks, found.synchronous, found.asynchronous, found.sampling_share) == (5, 0, 0, 0.25)
    assert (found.synchronous_s, found.asynchronous_s) == (None, None)
    assert (found.mark_s, found.heartbeat_s, found.step_s) == (0, SLOW_S, SLOW_S)


def test_a_step_has_as_many_marks_as_it_took(slow, monkeypatch):
    now = HostTimeline.now
    monkeypatch.setattr(HostTimeline, "now", lambda self: (slow(), now(self))[1])
    found = overhead.Meter().measure(steps(0), ranks(1), lambda: None, 0.0)
    assert (found.mark_s, found.heartbeat_s, found.step_s) == (SLOW_S, 0, 5 * SLOW_S)


def test_a_collective_costs_what_timing_it_takes_longer(group, slow, monkeypatch):
    now = HostTimeline.now
    monkeypatch.setattr(HostTimeline, "now", lambda self: (slow(), now(self))[1])
    found = overhead.Meter().measure(steps(2, 4), ranks(2), lambda: None, 0.0)
    assert (found.synchronous, found.asynchronous) == (1, 2)
    # Its arrival, and where it is asynchronous its end: there is nothing to wait for in this group.
    assert (found.synchronous_s, found.asynchronous_s) == (SLOW_S, 2 * SLOW_S)
    assert found.step_s == (5 + 1 + 2 * 2) * SLOW_S


def test_later_launches_of_a_process_are_told_what_the_first_was(slow):
    meter = overhead.Meter()
    first = meter.measure(steps(0), ranks(1), slow, 0.0)
    again = meter.measure(steps(0, 0), ranks(1), lambda: pytest.fail("timed twice"), 0.5)
    assert (again.heartbeat_s, again.sampling_share) == (first.heartbeat_s, 0.5)


def test_torch_is_left_as_it_was(group):
    wait = dist.Work.wait
    overhead.Meter().measure(steps(1), ranks(2), lambda: None, 0.0)
    assert dist.Work.wait is wait


def test_groups_of_one_rank_are_timed_only_where_that_is_asked_for(group):
    for smallest, noted in ((2, 0), (1, 1)):
        comms = Comms(HostTimeline(), torch.device("cpu"), smallest=smallest)
        comms.start()
        dist.all_reduce(torch.zeros(1), group=silence.alone())
        comms.stop()
        assert len(comms._issued) == noted
