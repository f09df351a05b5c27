"""When a device runs out of work, on a made-up device that works later than it is told to."""

from types import SimpleNamespace

import pytest
import torch

from vitscale.worker import launch_gap, timeline
from vitscale.worker.clock import StepClock
from vitscale.worker.launch_gap import Held, HeldClock, untold, work_ns
from vitscale.worker.timeline import CudaTimeline

MS = 1_000_000
PARTS = ("data", "forward", "backward", "optimizer")


class Device:
    """A host that launches kernels, and a stream that runs them in order. A stamp: when device and host were there."""

    def __init__(self):
        self.unread = {"launch_gap_s": "not timed"}
        self.host = self.free = 0

    def launch(self, host_ms, work_ms, count=1):
        for _ in range(count):
            self.host += round(host_ms * MS)
            self.free = max(self.free, self.host) + round(work_ms * MS)

    def wait(self):
        self.host = max(self.host, self.free)

    def now(self):
        return max(self.free, self.host), self.host

    def read(self, stamps):
        return [device for device, _ in stamps]

    def told(self, stamps):
        return [host for _, host in stamps]

    def reuse(self, kept):
        pass


def take(clock, parts, steps=3):
    clock.start()
    for _ in range(steps):
        for phase, part in zip(PARTS, parts, strict=True):
            part()
            clock.mark(phase)
        clock.end_step()


def timed(parts_on, hold_ms=1000):
    """Times of steps, and what is not known of them, of parts that are run on a device."""
    device = Device()
    parts = parts_on(device)
    clock, held = StepClock(device), HeldClock(device, lambda: device.launch(0, hold_ms))
    take(clock, parts)
    device.wait()
    take(held, parts)
    clock.know_work(work_ns(held.held()))
    return clock.drain()[-1], untold(held.held()), clock.unread


def kernels(*parts):
    """Ten kernels in each part, with milliseconds of the host and of the device for each."""
    return lambda device: [lambda one=one: device.launch(*one, count=10) for one in parts]


def test_a_host_that_is_behind_leaves_its_device_idle_for_the_difference():
    times, without, unread = timed(kernels((0.1, 0.1), (1, 0.2), (2, 0.5), (1, 0.1)))
    assert (without, unread) == (None, {})
    assert times["forward"] == pytest.approx(0.002, abs=2e-4)
    assert times["backward"] == pytest.approx(0.005, abs=5e-4)
    assert times["launch_gap"] == pytest.approx(0.008 + 0.015 + 0.009, rel=0.05)
    assert sum(times[part] for part in (*PARTS, "launch_gap")) == pytest.approx(times["step"])


def test_a_host_that_is_ahead_leaves_none():
    times, _, _ = timed(kernels((0.1, 0.1), (0.1, 1), (0.1, 2), (0.1, 1)))
    assert times["launch_gap"] == pytest.approx(0, abs=1e-4)
    assert times["backward"] == pytest.approx(0.020)


def test_only_the_parts_in_which_the_host_is_behind_have_one():
    """What is queued after the update, 33 ms, lasts for a forward pass that takes the host 20 ms, not for one of 50."""
    backward_and_update = (0.1, 3), (0.1, 0.5)
    times, _, _ = timed(kernels((0.1, 0.1), (2, 0.2), *backward_and_update))
    assert times["launch_gap"] == pytest.approx(0, abs=1e-4)
    times, _, _ = timed(kernels((0.1, 0.1), (5, 0.2), *backward_and_update))
    assert times["forward"] == pytest.approx(0.002, rel=0.05)
    assert times["launch_gap"] == pytest.approx(0.050 - 0.033 - 0.002, rel=0.01)


def test_a_sleep_between_launches_is_a_gap():
    def parts(device):
        def forward():
            device.launch(0.1, 0.2, count=5)
            device.host += 20 * MS
            device.launch(0.1, 0.2, count=5)

        busy = [lambda: device.launch(0.1, 0.2, count=10)] * 4
        return [busy[0], forward, *busy[2:]]

    times, _, _ = timed(parts)
    assert times["launch_gap"] == pytest.approx(0.016, rel=0.02)  # when the host falls asleep 4 ms are still queued


def test_a_device_that_is_slower_than_when_it_was_held_has_no_gap_while_it_has_work():
    device = Device()
    clock = StepClock(device)
    take(clock, kernels((0.1, 0.1), (0.1, 1), (0.1, 2), (0.1, 1))(device))
    clock.know_work([None, 1 * MS, 2 * MS, 1 * MS])
    assert clock.drain()[-1]["launch_gap"] == 0


def test_where_the_host_waits_for_the_device_in_a_part_its_gap_is_not_told():
    def parts(device):
        images, forward, backward, optimizer = kernels((0.1, 0.1), (1, 0.2), (1, 0.2), (1, 0.2))(device)
        return [images, forward, backward, lambda: (device.launch(0.1, 0.1), device.wait(), optimizer())]

    times, without, unread = timed(parts)
    assert without == "without the gaps of optimizer: the host cannot prepare all of it beforehand"
    assert unread == {}
    assert times["launch_gap"] == pytest.approx(0.016, rel=0.05)
    assert times["optimizer"] > 0.010


def test_a_host_that_waits_in_every_part_tells_none():
    def parts(device):
        return [lambda: (device.launch(0.1, 0.1), device.wait(), device.launch(0.1, 0.1))] * 4

    times, _, unread = timed(parts)
    assert "launch_gap" not in times
    assert unread == {"launch_gap_s": "not timed"}


class Engine:
    """An engine and its batches on a made-up device, whose host takes 1 ms for what the device does in 0.2."""

    def __init__(self, device):
        self.device = device
        self.weight = torch.nn.Parameter(torch.zeros(3, 10))

    def _work(self):
        self.device.launch(1, 0.2, count=10)

    def __next__(self):
        self._work()
        return torch.ones(4, 3), torch.zeros(4, dtype=torch.long)

    def __call__(self, images):
        self._work()
        return images @ self.weight

    def backward(self, loss, *, last):
        self._work()

    def step(self):
        self._work()


@pytest.fixture
def held(monkeypatch):
    """What `time_work` tells of steps of 4 parts and 2 micro-steps; unread fields, and the clock that it told."""
    device = Device()
    monkeypatch.setattr(launch_gap, "timeline_for", lambda _device: device)
    monkeypatch.setattr(launch_gap, "_spinning", lambda seconds: lambda: device.launch(0, seconds * 1e3))

    def held(**spec):
        clock, engine, beats = StepClock(device), Engine(device), []
        clock.start()
        for phase in ("data", "forward", "backward") * 2 + ("optimizer",):
            next(engine)
            clock.mark(phase)
        clock.end_step()
        told = SimpleNamespace(**{"precision": "fp32", "world_size": 1, "grad_accum": 2} | spec)
        untold = launch_gap.time_work(clock, engine, engine, told, "cpu", 0.1, lambda *beat: beats.append(beat))
        return untold, clock, beats

    return held


def test_the_work_of_steps_with_micro_steps_is_timed_and_the_clock_told(held):
    untold, clock, beats = held()
    assert (untold, clock.unread) == (None, {})
    assert beats == [("held", 1, 3), ("held", 2, 3), ("held", 3, 3)]
    (times,) = clock.drain()
    assert times["launch_gap"] == pytest.approx(5 * 0.008, rel=0.05)
    assert times["data"] == pytest.approx(0.020, rel=0.05)


def test_scaled_losses_of_several_ranks_are_not_held(held):
    untold, clock, beats = held(precision="fp16", world_size=2)
    assert (untold, beats) == (None, [])
    assert "launch_gap_s" in clock.unread


def test_steps_of_very_many_parts_are_not_held(held):
    untold, clock, beats = held(grad_accum=128)
    assert beats == []
    assert untold.startswith("the 385 parts of a step would be held for 19 s in all")
    assert "launch_gap_s" in clock.unread


def test_a_device_without_memory_for_what_is_prepared_ahead_tells_none(held, monkeypatch):
    def full(*_given):
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(launch_gap, "run_steps", full)
    untold, clock, _ = held()
    assert untold == "the device has no memory for a part that is prepared ahead of it"
    assert "launch_gap_s" in clock.unread


def test_a_part_that_was_let_go_too_early_does_not_count():
    early, right = Held("forward", 10, 30, 12), Held("forward", 10, 25, 9)
    assert work_ns([[early], [right], [early]]) == [15]
    assert work_ns([[early], [early]]) == [None]


def test_steps_before_their_work_is_known_have_no_gap_and_a_reason():
    device = Device()
    clock = StepClock(device)
    take(clock, kernels((0.1, 0.1), (1, 0.2), (2, 0.5), (1, 0.1))(device))
    assert "launch_gap" not in clock.drain()[-1]
    assert clock.unread == {"launch_gap_s": "not timed"}


def test_a_cuda_stamp_is_an_event_and_the_moment_at_which_the_host_recorded_it(monkeypatch):
    """Events that the device reaches 2 ms after they are recorded."""
    now = SimpleNamespace(ns=0)

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.ns = now.ns + 2 * MS

        def synchronize(self):
            now.ns = max(now.ns, self.ns)

        def elapsed_time(self, other):
            return (other.ns - self.ns) / MS

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "stream")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(timeline.time, "perf_counter_ns", lambda: now.ns)
    told = CudaTimeline()
    stamps = []
    for at in (1, 4, 9):
        now.ns = at * MS
        stamps.append(told.now())
    assert told.told(stamps) == [1 * MS, 4 * MS, 9 * MS]
    assert told.read(stamps) == [3 * MS, 6 * MS, 11 * MS]
    kept = stamps[-1]
    told.reuse(kept)
    again = [told.now() for _ in range(3)]
    assert {id(one.event) for one in stamps[:-1]} < {id(one.event) for one in again}
    assert all(one.event is not kept.event for one in again)
