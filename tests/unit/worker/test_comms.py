"""Collectives as they are noted, on a process group that sends nothing."""

import pytest
import torch
import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from vitscale.worker.clock import StepClock
from vitscale.worker.comms import Comms
from vitscale.worker.timeline import HostTimeline

CPU = torch.device("cpu")


@pytest.fixture
def group():
    """Two ranks, of which this is the first."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    yield
    dist.destroy_process_group()


def floats(count):
    return torch.zeros(count)


def functional_sum(tensor):
    operators = torch.ops._c10d_functional
    return operators.wait_tensor(operators.all_reduce(tensor, "sum", dist.group.WORLD.group_name))


CALLS = {
    "all_reduce": (lambda: dist.all_reduce(floats(10)), 40),
    "all_gather": (lambda: dist.all_gather_into_tensor(floats(20), floats(10)), 80),
    "all_gather of a list": (lambda: dist.all_gather([floats(10), floats(10)], floats(10)), 80),
    "reduce_scatter": (lambda: dist.reduce_scatter_tensor(floats(5), floats(10)), 40),
    "reduce_scatter of a list": (lambda: dist.reduce_scatter(floats(5), [floats(5), floats(5)]), 40),
    "all_to_all": (lambda: dist.all_to_all_single(floats(10), floats(10)), 40),
    "broadcast": (lambda: dist.broadcast(floats(10), 0), 40),
    "reduce": (lambda: dist.reduce(floats(10), 0), 40),
    "barrier": (lambda: dist.barrier(), 0),
    "all_reduce by DTensor's way": (lambda: functional_sum(floats(3)), 12),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_collective_is_noted_with_the_size_that_nccl_tests_gives_it(group, name):
    call, size = CALLS[name]
    comms = Comms(HostTimeline(), CPU)
    comms.start()
    call()
    comms.stop()
    call()
    ((one,), _) = comms.drain([])
    assert (one.operation, one.bytes, one.group_size) == (name.split()[0], size, 2)
    assert one.arrived <= one.last


@pytest.mark.parametrize(
    ("name", "ahead_ms", "told"), [("all_reduce", 2, False), ("all_reduce", 0.5, True), ("broadcast", 2, True)]
)
def test_clocks_that_moved_apart_leave_nothing_that_rests_on_arrivals(group, monkeypatch, name, ahead_ms, told):
    """Rank 0 of a broadcast may be done before the others come; an all-reduce has to wait for all."""
    comms = Comms(HostTimeline(), CPU)
    clock = StepClock(HostTimeline(), comms)

    def meet(_group, calls):
        for one in calls:
            one.last = one.finished + round(ahead_ms * 1e6)
        return True

    monkeypatch.setattr(comms, "_meet", meet)
    clock.start()
    CALLS[name][0]()
    clock.mark("backward")
    clock.end_step()
    clock.stop()
    (times,) = clock.drain()
    fields = ("comm", "comm_exposed", "comm_overlapped", "wait", "late")
    assert [field in times for field in fields] == [told] * 5
    assert all("the hosts' clocks moved apart" in reason for reason in clock.unread.values())
    assert {*clock.unread} == (set() if told else {f"{field}_s" for field in fields})
    assert times["step"] > 0


def test_torch_is_left_as_it_was(group):
    wait = dist.Work.wait
    comms = Comms(HostTimeline(), CPU)
    comms.start()
    assert dist.Work.wait is not wait
    comms.stop()
    assert dist.Work.wait is wait
    dist.all_reduce(floats(10))
    assert comms.drain([]) == ([], [])


def test_a_drain_while_steps_are_taken_does_not_see_itself(group):
    comms = Comms(HostTimeline(), CPU)
    clock = StepClock(HostTimeline(), comms)
    clock.start()
    for _ in range(2):
        dist.all_reduce(floats(10))
        clock.mark("optimizer")
        clock.end_step()
        (times,) = clock.drain()
        ((_, traffic),) = times.traffic.items()
        assert (traffic.calls, traffic.bytes) == (1, 40)
    clock.stop()


def test_ranks_that_did_not_issue_the_same_know_nothing_of_each_other(group, monkeypatch):
    comms = Comms(HostTimeline(), CPU)
    comms.start()
    dist.all_reduce(floats(10))
    comms.stop()
    monkeypatch.setattr(dist, "all_reduce", lambda counts, *_, **__: counts.copy_(torch.tensor([2, -1])))
    ((one,), _) = comms.drain([])
    assert one.wire is None
    assert {"comm_s", "comm_exposed_s", "wait_s"} < comms.unread.keys()
