"""What two predictions share cancels in their ratio, what they do not share stays in it."""

from dataclasses import replace

import numpy as np
import pytest

from vitscale.cost import models
from vitscale.cost.scaling import Layout
from vitscale.predict import from_source
from vitscale.predict.candidates import Candidate, Pool, Way
from vitscale.predict.from_source import Source
from vitscale.predict.model import calibrate, predict
from vitscale.predict.series import Asked, Observation, Series
from vitscale.predict.suggest import suggest

MODEL = "vit_base_patch16_224"
WAY = Way("ddp", None, "bf16")


def weak(device="h100", **facts):
    steps = {1: 0.100, 2: 0.104, 4: 0.105, 8: 0.108}
    seen = tuple(Observation(Layout(size, 1, 64, 1), step_s) for size, step_s in steps.items())
    return Series("weak", seen, "weak", model=MODEL, device=device, engine="ddp", precision="bf16", **facts)


def spread(source, *asked):
    """Log standard deviation of the ratio of two candidates' steps: (device, ranks, engine) each."""
    candidates = [
        Candidate(Pool(device, 8, None, None), replace(WAY, engine=engine), Layout(size, 1, 64, 1))
        for device, size, engine in asked
    ]
    first, second = from_source.steps_of(source)(candidates)
    return float(np.std(np.log(first / second)))


def source(*series):
    return Source(models.shape(MODEL), 512, 10_000, 1.0, "adamw", series)


def test_data_sheets_of_two_devices_err_independently():
    # Each m has a log standard deviation of 0.3.
    assert spread(source(), ("a100-40gb", 8, "ddp"), ("h100", 8, "ddp")) > 0.4
    # On one device it is the same m: what is left is the mechanisms and two launches.
    assert spread(source(), ("h100", 8, "ddp"), ("h100", 4, "ddp")) < 0.1
    assert spread(source(), ("h100", 1, "ddp"), ("h100", 1, "fsdp")) < 0.1


def test_a_changed_device_is_uncertain_once():
    own = source(weak())
    assert spread(own, ("h100", 8, "ddp"), ("h100", 4, "ddp")) < 0.05
    assert spread(own, ("a100-40gb", 8, "ddp"), ("a100-40gb", 4, "ddp")) < 0.06
    assert spread(own, ("a100-40gb", 8, "ddp"), ("l40s", 8, "ddp")) == pytest.approx(0.25 * 2**0.5, rel=0.1)
    # Another engine beside it has its own 0.1, and the device's is common.
    assert 0.09 < spread(own, ("a100-40gb", 8, "ddp"), ("a100-40gb", 8, "deepspeed")) < 0.16


def log_width(said):
    return np.log(said.high95 / said.low95)


@pytest.mark.parametrize("asked", [Asked(link="400gbit"), Asked(device="a100-80gb"), Asked(micro_batch=32)])
def test_efficiency_under_a_change_has_the_noise_of_both_launches(asked):
    # Two of eight ranks, where next to nothing but noise and drift is open.
    calibration = calibrate(weak())
    noise = calibration.parameters["noise"].median
    (said,) = predict(calibration, [2], asked).points
    assert log_width(said.efficiency) > 2 * 1.96 * 2**0.5 * noise
    assert log_width(said.speedup) == pytest.approx(log_width(said.efficiency))


def test_efficiency_from_data_sheets_has_the_noise_of_both_launches():
    bare = tuple(Observation(Layout(size, 1, 64, 1), None) for size in (1, 2))
    board = Series("specs", bare, "weak", model=MODEL, device="t4", engine="ddp", precision="fp16")
    calibration = calibrate(board)
    two = predict(calibration, [2]).points[0]
    assert log_width(two.efficiency) > 2 * 1.96 * 2**0.5 * calibration.parameters["noise"].median
    # The speed of the device is no part of it.
    assert log_width(two.efficiency) < log_width(two.step_s)


def test_a_change_does_not_narrow_efficiency():
    calibration = calibrate(weak())
    plain, linked = (predict(calibration, [64], asked).points[0] for asked in (Asked(), Asked(precision="fp16")))
    assert log_width(linked.efficiency) > log_width(plain.efficiency)


@pytest.mark.parametrize("asked", [Asked(), Asked(device="a100-80gb"), Asked(precision="fp16")])
def test_advice_starts_from_the_predicted_interval(asked):
    calibration = calibrate(weak())
    (said,) = predict(calibration, [512], asked).points
    advice = suggest(calibration, 512, asked)
    assert advice.half_width == pytest.approx(said.step_s.half_width)
    assert advice.suggestions[0].half_width < advice.half_width


def test_one_run_on_the_changed_device_takes_most_of_its_uncertainty():
    calibration = calibrate(weak())
    advice = suggest(calibration, 16, Asked(device="a100-80gb"))
    assert advice.half_width > 0.4
    assert advice.suggestions[0].half_width < 0.5 * advice.half_width
