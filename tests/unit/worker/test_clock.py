"""Clocks, with time as the test says it is."""

import pytest
import torch

from vitscale.worker import timeline
from vitscale.worker.clock import NoClock, StepClock
from vitscale.worker.loop import Losses, run_steps
from vitscale.worker.timeline import HostTimeline

NOTHING_SENT = dict.fromkeys(("comm", "comm_exposed", "comm_overlapped", "wait", "late", "launch_gap"), 0.0)


@pytest.fixture
def now(monkeypatch):
    """The monotonic clock, moved by hand, in nanoseconds."""

    class Time:
        at = 1_000

        def __call__(self):
            return self.at

        def passes(self, seconds):
            self.at += int(seconds * 1e9)

    time = Time()
    monkeypatch.setattr(timeline.time, "perf_counter_ns", time)
    return time


def test_phases_of_several_micro_steps_add_up_and_steps_follow_one_another(now):
    clock = StepClock(HostTimeline())
    clock.start()
    for _ in range(2):
        for phase, seconds in (("data", 0.1), ("forward", 0.2), ("backward", 0.4)):
            now.passes(seconds)
            clock.mark(phase)
    now.passes(0.3)
    clock.mark("optimizer")
    clock.end_step()
    now.passes(5)
    clock.mark("data")
    clock.end_step()
    first, second = clock.drain()
    assert first == pytest.approx(
        {"data": 0.2, "forward": 0.4, "backward": 0.8, "optimizer": 0.3, "step": 1.7, **NOTHING_SENT}
    )
    assert second == pytest.approx({"data": 5, "step": 5, **NOTHING_SENT})
    assert clock.drain() == []


def test_setting_the_hosts_clock_changes_no_time_of_a_step(now, monkeypatch):
    clock = StepClock(HostTimeline())
    clock.start()
    for hour in (9, 3, 12):  # of the day, as somebody sets it while steps are taken
        monkeypatch.setattr("time.time", lambda at=hour: 3600.0 * at)
        now.passes(0.5)
        clock.mark("forward")
        clock.end_step()
    assert [step["step"] for step in clock.drain()] == pytest.approx([0.5] * 3)


def test_time_between_windows_belongs_to_no_step(now):
    clock = StepClock(HostTimeline())
    clock.start()
    now.passes(1)
    clock.mark("forward")
    clock.end_step()
    now.passes(60)  # evaluation, flush, agreement on the number of steps
    clock.start()
    now.passes(2)
    clock.mark("forward")
    clock.end_step()
    assert [step["step"] for step in clock.drain()] == pytest.approx([1, 2])


def test_a_drain_between_two_steps_is_in_the_second_one_and_in_none_of_its_parts(now, monkeypatch):
    clock = StepClock(HostTimeline())
    clock.start()
    now.passes(1)
    clock.mark("data")
    clock.end_step()
    monkeypatch.setattr(clock, "_read", lambda step, read=clock._read: (now.passes(7), read(step))[1])
    clock.drain()
    now.passes(2)
    clock.mark("data")
    clock.end_step()
    (step,) = clock.drain()
    assert (step["data"], step["step"]) == pytest.approx((2, 9))


class FakeEngine:
    dtype = torch.float32

    def __init__(self, now, calls):
        self.now, self.calls = now, calls
        self.weight = torch.nn.Parameter(torch.zeros(3, 10))

    def __call__(self, images):
        self.now.passes(0.2)
        return images @ self.weight

    def backward(self, loss, *, last):
        self.now.passes(0.4)
        self.calls.append(("backward", last))

    def step(self):
        self.now.passes(0.1)
        self.calls.append(("step",))


class FakeBatches:
    def __init__(self, now):
        self.now = now

    def __next__(self):
        self.now.passes(0.05)
        return torch.ones(4, 3), torch.zeros(4, dtype=torch.long)


def test_the_loop_books_every_part_of_a_step_and_the_whole_is_their_sum(now):
    calls, after, clock, losses = [], [], StepClock(HostTimeline()), Losses(grad_accum=2)
    run_steps(range(3, 5), FakeEngine(now, calls), FakeBatches(now), clock, losses, 2, after.append)
    steps = clock.drain()
    assert len(steps) == 2
    for step in steps:
        parts = {"data": 0.1, "forward": 0.4, "backward": 0.8, "optimizer": 0.1, "step": 1.4}
        assert step == pytest.approx({**parts, **NOTHING_SENT})
    assert calls == [("backward", False), ("backward", True), ("step",)] * 2
    assert after == [3, 4]
    assert losses.drain() == pytest.approx([2.302585] * 2)


def test_the_control_clock_measures_nothing_and_counts_steps():
    clock = NoClock()
    clock.start()
    clock.mark("forward")
    clock.end_step()
    clock.end_step()
    assert len(clock.drain()) == 2
    assert clock.drain() == []


def test_losses_are_means_over_micro_steps_in_order():
    losses = Losses(grad_accum=2)
    for value in (1.0, 3.0, 10.0, 20.0):
        losses.add(torch.tensor(value))
    assert losses.glance() == 20.0
    assert losses.drain() == [2.0, 15.0]
    assert losses.drain() == []
