"""`[inject]`'s sleeps: on the rank, in the part and in the step that were asked for, once a step."""

import pytest

from vitscale.worker import inject


class Recorder:
    """An engine and batches; what they and the sleeps did, in order."""

    skipped = 0

    def __init__(self):
        self.did = []

    def __next__(self):
        self.did.append("data")

    def __call__(self, images):
        self.did.append("forward")

    def backward(self, loss, *, last):
        self.did.append("backward")

    def step(self):
        self.did.append("optimizer")


@pytest.fixture
def taken(monkeypatch):
    """What two steps of two micro-steps do on a rank."""

    def take(text, rank=0):
        recorder = Recorder()
        monkeypatch.setattr(inject.time, "sleep", recorder.did.append)
        asked = inject.delays("vit_tiny-abc", rank, {"VITSCALE_INJECT": text})
        engine, batches = inject.slowed(recorder, recorder, asked)
        for _ in range(2):
            for micro_step in range(2):
                next(batches)
                engine(None)
                engine.backward(None, last=micro_step == 1)
            engine.step()
        assert engine.skipped == 0
        return recorder.did

    return take


PLAIN = [*["data", "forward", "backward"] * 2, "optimizer"] * 2


@pytest.mark.parametrize("where", ["data", "forward", "backward", "optimizer"])
def test_a_rank_sleeps_once_a_step_at_the_start_of_a_part(taken, where):
    did = taken(f"sleep rank=1 where={where} seconds=0.02", rank=1)
    assert [what for what in did if what != 0.02] == PLAIN
    sleeps = [at for at, what in enumerate(did) if what == 0.02]
    starts = [at for at, what in enumerate(did) if what == where]
    assert [at + 1 for at in sleeps] == starts[:: len(starts) // 2]


def test_a_step_can_be_given(taken):
    did = taken("sleep where=forward seconds=0.1 step=1")
    assert did.count(0.1) == 1
    assert did.index(0.1) > len(PLAIN) // 2


def test_others_are_left_alone(taken):
    assert taken("sleep rank=1 where=data seconds=0.1") == PLAIN
    assert taken("sleep launch=other where=data seconds=0.1") == PLAIN
    assert taken("raise step=1") == PLAIN


def test_a_sleep_is_no_fault_that_strikes_after_a_step():
    text = "sleep where=data seconds=0.1; raise step=1"
    assert inject.fault("run", 0, {"VITSCALE_INJECT": "sleep where=data seconds=0.1"}) is None
    strike = inject.fault("run", 0, {"VITSCALE_INJECT": text})
    strike(0)
    with pytest.raises(inject.Injected):
        strike(1)


def test_a_slower_device_takes_longer_in_every_forward_pass(taken, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(inject.time, "perf_counter", lambda: next(clock))
    did = taken("slow rank=1 factor=3", rank=1)
    assert [what for what in did if what != 2] == PLAIN
    assert [did[at - 1] for at, what in enumerate(did) if what == 2] == ["forward"] * 4
    assert taken("slow rank=1 factor=3", rank=0) == PLAIN
