"""What runs beside compute, by engine, stage and knobs, on a GPU and on a CPU."""

import pytest

from vitscale.cost.overlap import overlaps
from vitscale.cost.scaling import schedule

ON, OFF, BESIDE = {"overlap_comm": True}, {"overlap_comm": False}, {"overlap_reduce": True}


@pytest.mark.parametrize(
    ("engine", "stage", "knobs", "on_gpu", "on_cpu"),
    [
        ("ddp", None, {}, True, True),
        ("ddp", None, OFF, True, True),
        ("accelerate", None, {}, True, True),
        ("fsdp", None, {}, True, False),
        ("single", None, {}, False, False),
        (None, None, {}, False, False),
        (None, 3, {}, False, False),
        ("deepspeed", 0, {}, False, False),
        ("deepspeed", 0, ON, False, False),
        ("deepspeed", 0, BESIDE, True, True),
        ("deepspeed", 1, {}, False, False),
        ("deepspeed", 1, BESIDE, False, False),
        ("deepspeed", 1, ON, True, False),
        ("deepspeed", 2, ON, True, False),
        ("deepspeed", 3, {}, True, False),
        ("deepspeed", 3, OFF, False, False),
        ("accelerate_deepspeed", 0, BESIDE, False, False),
        ("accelerate_deepspeed", 2, ON, True, False),
    ],
)
def test_engines_overlap_as_they_were_seen_or_are_documented(engine, stage, knobs, on_gpu, on_cpu):
    assert overlaps(engine, stage, knobs, on_cpu=False) == on_gpu
    assert overlaps(engine, stage, knobs, on_cpu=True) == on_cpu
    assert schedule(engine, stage, knobs).overlap == on_gpu
    assert schedule(engine, stage, knobs, on_cpu=True).overlap == on_cpu


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_accelerate_sends_as_the_deepspeed_that_it_drives(stage):
    assert schedule("accelerate_deepspeed", stage) == schedule("deepspeed", stage)


def test_gradients_beside_backward_at_zero_0_travel_as_ddps():
    assert schedule("deepspeed", 0, BESIDE, on_cpu=True) == schedule("ddp", None, on_cpu=True)
