"""Checkpoints and failures: Young's and Daly's forms against each other and against a simulation."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.cost import failures

KEYS = {"checkpoint_s": 60.0, "restart_s": 300.0, "mtbf_s": 4 * 3600.0}


def test_many_devices_fail_more_often():
    assert failures.mean_between_failures_s(16_384) == pytest.approx(3.05 * 3600, rel=0.01)


def test_dalys_interval_is_the_least_of_the_wall_time():
    best = failures.daly_interval_s(60.0, KEYS["mtbf_s"])
    times = {share: failures.wall_s(1e6, interval_s=share * best, **KEYS) for share in (0.8, 1.0, 1.25)}
    assert times[1.0] < min(times[0.8], times[1.25])
    assert failures.young_interval_s(60.0, KEYS["mtbf_s"]) == pytest.approx(best, rel=0.05)


def test_the_expected_wall_time_is_that_of_simulated_failures():
    interval_s, segments = 1800.0, 200
    rng = np.random.default_rng(0)
    found = [simulated(rng, interval_s, segments) for _ in range(60)]
    expected = failures.wall_s(interval_s * segments, interval_s=interval_s, **KEYS)
    assert expected == pytest.approx(np.mean(found), rel=0.02)


def simulated(rng, interval_s, segments):
    """A restart that fails begins again, as Daly has it."""
    now = 0.0
    for _ in range(segments):
        left = interval_s + KEYS["checkpoint_s"]
        while (life := rng.exponential(KEYS["mtbf_s"])) < left:
            now += life
            left = KEYS["restart_s"] + interval_s + KEYS["checkpoint_s"]
        now += left
    return now


@given(st.floats(1, 1e7), st.floats(1, 1e5), st.floats(0, 600), st.floats(0, 600))
def test_failures_never_make_it_faster(work_s, interval_s, checkpoint_s, restart_s):
    keys = {"interval_s": interval_s, "checkpoint_s": checkpoint_s, "restart_s": restart_s}
    without = failures.wall_s(work_s, **keys, mtbf_s=math.inf)
    wall_s = failures.wall_s(work_s, **keys, mtbf_s=3600.0)
    assert wall_s is None or wall_s >= without * (1 - 1e-9) >= work_s * (1 - 1e-9)


def test_what_never_ends_has_no_figure():
    assert failures.wall_s(1e9, interval_s=1e6, checkpoint_s=1.0, restart_s=1.0, mtbf_s=1.0) is None
    assert failures.wall_s(1.0, interval_s=0.0, checkpoint_s=1.0, restart_s=1.0, mtbf_s=1.0) is None
