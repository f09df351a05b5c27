"""Intervals cover what they promise; order and units do not matter."""

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vitscale.statistics import Estimate, differ, interval, median_of, modified_z, ratio_interval

times = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9)

NOISE = {
    "lognormal": lambda rng, shape: 0.05 * rng.standard_normal(shape),
    "heavy tails (t, 3 degrees of freedom)": lambda rng, shape: 0.05 * rng.standard_t(3, shape),
    "one launch in ten is far off": lambda rng, shape: (
        0.02 * rng.standard_normal(shape) * np.where(rng.random(shape) < 0.1, 10, 1)
    ),
}


@pytest.mark.parametrize("launches", [3, 5, 6, 7, 10, 15])
@pytest.mark.parametrize("noise", NOISE)
def test_a_95_percent_interval_covers_90_to_99_percent(noise, launches):
    samples = np.exp(NOISE[noise](np.random.default_rng(launches), (600, launches)))
    covered = sum(found.low <= 1 <= found.high for found in map(interval, samples.tolist())) / len(samples)
    # Heavy tails make Student's t cautious, never bold.
    assert 0.90 <= covered <= (0.99 if noise == "lognormal" else 0.998)


@pytest.mark.parametrize("launches", [(3, 3), (5, 3), (10, 10), (6, 15)])
def test_a_95_percent_interval_of_a_ratio_covers_90_to_99_percent(launches):
    rng = np.random.default_rng(7)
    above = 2 * np.exp(0.05 * rng.standard_normal((500, launches[0])))
    below = np.exp(0.02 * rng.standard_normal((500, launches[1])))
    found = [ratio_interval(a, b) for a, b in zip(above.tolist(), below.tolist(), strict=True)]
    covered = sum(one.low <= 2 <= one.high for one in found) / len(found)
    assert 0.90 <= covered <= 0.99


def test_one_launch_has_no_interval():
    assert interval([0.25]) == Estimate(0.25, None, None)
    assert ratio_interval([0.25], [0.5, 0.5, 0.5]) == Estimate(0.5, None, None)


def test_three_launches_are_students_t_on_logarithms():
    values = [0.10, 0.11, 0.13]
    logs = np.log(values)
    low, high = stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs))
    assert interval(values) == pytest.approx((0.11, math.exp(low), math.exp(high)))


def test_below_six_launches_a_ratio_is_welchs():
    a, b = [0.10, 0.11, 0.13], [0.20, 0.21, 0.22, 0.26]
    welch = stats.ttest_ind(np.log(a), np.log(b), equal_var=False).confidence_interval(0.95)
    found = ratio_interval(a, b)
    assert (found.low, found.high) == pytest.approx((math.exp(welch.low), math.exp(welch.high)))
    assert found.median == pytest.approx(0.11 / 0.215)


def test_the_interval_holds_the_median_where_the_logarithms_are_lopsided():
    found = interval([1.0, 1.0, 1.0, 1.0, 1000.0])
    assert found.low <= found.median == 1.0 <= found.high


@given(times)
def test_the_ends_are_in_order_around_the_median(values):
    found = interval(values)
    assert found.median == median_of(values)
    if len(values) > 1:
        assert 0 < found.low <= found.median <= found.high


@given(times, times, st.randoms(use_true_random=False))
def test_the_order_of_launches_does_not_matter(a, b, shuffler):
    mixed_a, mixed_b = random.Random(1).sample(a, len(a)), list(b)
    shuffler.shuffle(mixed_b)
    assert interval(mixed_a) == interval(a)
    assert ratio_interval(mixed_a, mixed_b) == ratio_interval(a, b)


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=8), st.floats(1e-3, 1e3))
def test_another_unit_of_time_scales_the_interval(values, unit):
    assert interval([value * unit for value in values]) == pytest.approx([end * unit for end in interval(values)])


@given(times, times)
def test_a_ratio_and_its_inverse_have_inverse_intervals_for_few_launches(a, b):
    a, b = a[:5], b[:5]
    forth, back = ratio_interval(a, b), ratio_interval(b, a)
    assert forth.median * back.median == pytest.approx(1)
    if forth.low is not None:
        assert forth.low * back.high == pytest.approx(1)


@pytest.mark.parametrize("values", [[], [0.0], [-1.0, 1.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_values_that_are_no_times_are_refused(values):
    with pytest.raises(ValueError, match="positive finite"):
        interval(values)


def test_equal_launches_have_an_interval_without_width():
    assert interval([0.5] * 3) == pytest.approx((0.5, 0.5, 0.5))
    assert ratio_interval([0.5] * 8, [0.25] * 8) == pytest.approx((2, 2, 2))


def test_an_outlier_has_a_large_modified_z_and_the_others_do_not():
    scores = modified_z([1.00, 1.01, 0.99, 1.02, 1.60])
    assert abs(scores[4]) > 3.5
    assert all(abs(score) < 3.5 for score in scores[:4])
    assert scores[4] == pytest.approx(0.6745 * 0.59 / 0.01)


def test_too_little_spread_or_too_few_values_flag_nothing():
    assert modified_z([1.0, 9.0]) == [0, 0]
    assert modified_z([1.0, 1.0, 1.0, 9.0]) == [0, 0, 0, 0]


def test_only_intervals_apart_differ():
    assert differ(Estimate(1, 0.9, 1.1), Estimate(2, 1.5, 2.5))
    assert differ(Estimate(2, 1.5, 2.5), Estimate(1, 0.9, 1.1))
    assert not differ(Estimate(1, 0.9, 1.5), Estimate(2, 1.5, 2.5))
    assert not differ(Estimate(1), Estimate(2, 1.5, 2.5))
