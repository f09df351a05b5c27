"""What a step takes for its images is added, image by image; on other nodes it is less sure."""

import numpy as np
import pytest

from vitscale.cost.input import Input, Reading
from vitscale.cost.scaling import Layout

ZERO, SPREAD = np.zeros(1), np.random.default_rng(0).standard_normal(4000)
READINGS = Input((Reading(1, 1e-3), Reading(2, 2e-3), Reading(2, 3e-3), Reading(2, 4e-3)))


def test_every_image_of_a_rank_takes_as_long_as_on_like_nodes():
    # Two micro-steps of 8 images; the median of the three runs with two ranks on a node.
    busy = np.array([0.1])
    for layout in (Layout(2, 1, 8, 2), Layout(64, 32, 8, 2)):
        assert READINGS.total_s(busy, layout, ZERO) == pytest.approx(0.1 + 16 * 3e-3)
    assert READINGS.total_s(busy, Layout(4, 4, 8, 2), ZERO) == pytest.approx(0.1 + 16 * 1e-3)


def test_without_readings_a_step_stays_as_it_is():
    layout = Layout(2, 1, 8, 2)
    assert Input(()).total_s(np.array([0.1]), layout, ZERO) == 0.1
    assert Input(()).assumptions(layout) == ()


def test_fuller_nodes_than_were_measured_and_changes_are_less_sure():
    def log_sd(readings, ranks, further=0.0):
        return np.std(np.log(readings.total_s(np.zeros(4000), Layout(ranks, 1, 8, 2), SPREAD, further)))

    apart = log_sd(READINGS, 2)
    assert apart == pytest.approx(0.272, rel=0.05)  # the three runs' standard deviation over their mean
    assert log_sd(Input(READINGS.readings[:2]), 2) == pytest.approx(0.1, rel=0.05)
    assert log_sd(READINGS, 8) == pytest.approx(np.hypot(apart, np.log(4)), rel=0.05)
    assert log_sd(READINGS, 2, 0.25) == pytest.approx(np.hypot(apart, 0.25), rel=0.05)


def test_fuller_nodes_than_were_measured_are_said():
    assert READINGS.assumptions(Layout(2, 1, 8, 2)) == ()
    (line,) = READINGS.assumptions(Layout(8, 1, 8, 2))
    assert "8 ranks of a node read them, 2 did where it was measured" in line


def test_where_two_numbers_of_ranks_are_as_near_both_are_said():
    both = Input((Reading(4, 1e-3), Reading(1, 3e-3), Reading(4, 1e-3)))
    (line,) = both.assumptions(Layout(2, 1, 8, 2))
    assert "2 ranks of a node read them, 1 and 4 did where it was measured" in line


def test_one_more_run_is_as_sure_as_its_nodes_are_like_the_asked_ones():
    asked = Layout(8, 1, 8, 2)
    nearer, farther = (READINGS.measured_at(Layout(ranks, 1, 8, 2)) for ranks in (4, 1))
    assert nearer.log_sd(asked) == pytest.approx(np.hypot(0.1, np.log(2)))
    assert farther.log_sd(asked) == READINGS.log_sd(asked)
    assert READINGS.measured_at(asked).total_s(np.zeros(1), asked, ZERO) == READINGS.total_s(np.zeros(1), asked, ZERO)
    assert Input(()).measured_at(asked) == Input(())
