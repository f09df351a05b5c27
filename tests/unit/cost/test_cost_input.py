"""Waiting for images: on demand it is added, read ahead it is a floor; other nodes are less sure."""

import numpy as np
import pytest

from vitscale.cost.input import Input, Reading, reads_ahead
from vitscale.cost.scaling import Layout

ZERO, SPREAD = np.zeros(1), np.random.default_rng(0).standard_normal(4000)
READINGS = (Reading(1, 1e-3, 5e-3), Reading(2, 2e-3, 6e-3), Reading(2, 3e-3, 7e-3), Reading(2, 4e-3, 8e-3))


def total_s(layout, busy_s, *, ahead, z=ZERO, readings=READINGS):
    return Input(readings, ahead).total_s(np.full(z.shape, busy_s), layout, z)


def test_on_demand_every_image_of_a_rank_is_waited_for_as_on_like_nodes():
    # Two micro-steps of 8 images; the median wait of the three runs with two ranks on a node.
    for layout in (Layout(2, 1, 8, 2), Layout(64, 32, 8, 2)):
        assert total_s(layout, 0.1, ahead=False) == pytest.approx(0.1 + 16 * 3e-3)
    assert total_s(Layout(4, 4, 8, 2), 0.1, ahead=False) == pytest.approx(0.1 + 16 * 1e-3)


def test_read_ahead_a_step_is_as_long_as_its_images_take_to_read_or_longer():
    layout = Layout(2, 1, 8, 2)
    assert total_s(layout, 0.01, ahead=True) == pytest.approx(16 * 6e-3)
    assert total_s(layout, 0.5, ahead=True) == 0.5


@pytest.mark.parametrize("ahead", [False, True])
def test_without_readings_a_step_stays_as_it_is(ahead):
    assert total_s(Layout(2, 1, 8, 2), 0.1, ahead=ahead, readings=()) == 0.1
    assert Input((), ahead).assumptions(Layout(2, 1, 8, 2)) == ()


@pytest.mark.parametrize("ahead", [False, True])
def test_fuller_nodes_than_were_measured_are_less_sure_and_it_is_said(ahead):
    def log_sd(ranks):
        return np.std(np.log(total_s(Layout(ranks, 1, 8, 2), 0.0, ahead=ahead, z=SPREAD)))

    own = 0.1 if ahead else 0.272  # the three waits' standard deviation over their mean
    assert log_sd(2) == pytest.approx(own, rel=0.05)
    assert log_sd(8) == pytest.approx(np.hypot(log_sd(2), np.log(4)), rel=0.05)
    told = Input(READINGS, ahead)
    assert told.assumptions(Layout(2, 1, 8, 2)) == ()
    (line,) = told.assumptions(Layout(8, 1, 8, 2))
    assert line.startswith("8 ranks of a node read images, 2 did where it was measured")


def test_ranks_read_ahead_on_cuda_and_where_they_are_told_to():
    assert reads_ahead({}, on_cpu=False)
    assert not reads_ahead({}, on_cpu=True)
    assert reads_ahead({"loader_threads": 2}, on_cpu=True)
    assert not reads_ahead({"loader_threads": 0}, on_cpu=False)
