import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitscale.data.order import GlobalOrder, evaluation_slices, rank_slice, subset
from vitscale.errors import UsageError

sizes = st.integers(1, 60)


@given(sizes, st.data())
def test_an_epoch_reads_no_image_twice_and_drops_less_than_a_batch(images, data):
    batch = data.draw(st.integers(1, images))
    order = GlobalOrder(images, batch, data.draw(st.integers(0, 9)))
    epoch = data.draw(st.integers(0, 3))
    first = epoch * order.steps_per_epoch
    read = np.concatenate([order.batch_indices(first + step) for step in range(order.steps_per_epoch)])
    assert len(np.unique(read)) == len(read) == images - images % batch
    assert set(read) <= set(range(images))


MICRO_BATCHES = st.lists(st.integers(1, 4), min_size=1, max_size=4)


@given(MICRO_BATCHES, st.integers(1, 4), st.integers(0, 9))
def test_ranks_and_micro_steps_share_a_batch_without_gap_or_overlap(micro_batches, accum, seed):
    order = GlobalOrder(200, sum(micro_batches) * accum, seed)
    batch = order.batch_indices(3)
    shares = [rank_slice(batch, rank, micro_batches, accum) for rank in range(len(micro_batches))]
    assert [share.shape for share in shares] == [(accum, micro) for micro in micro_batches]
    assert sorted(np.concatenate(shares, axis=None)) == sorted(batch)


@given(MICRO_BATCHES, st.integers(1, 4))
def test_a_micro_step_reads_the_same_images_however_ranks_share_it(micro_batches, accum):
    batch = np.arange(sum(micro_batches) * accum)
    ranks = range(len(micro_batches))
    for step in range(accum):
        together = np.concatenate([rank_slice(batch, rank, micro_batches, accum)[step] for rank in ranks])
        assert (together == rank_slice(batch, 0, [sum(micro_batches)], accum)[step]).all()


def test_the_order_differs_between_epochs_and_seeds_and_repeats_for_the_same():
    order = GlobalOrder(100, 100, 0)
    assert (order.batch_indices(0) != order.batch_indices(1)).any()
    assert (order.batch_indices(0) != GlobalOrder(100, 100, 1).batch_indices(0)).any()
    assert (order.batch_indices(0) == GlobalOrder(100, 100, 0).batch_indices(0)).all()


def test_steps_may_be_asked_for_in_any_order():
    order = GlobalOrder(50, 7, 3)
    forwards = [order.batch_indices(step).copy() for step in range(30)]
    backwards = [order.batch_indices(step) for step in reversed(range(30))]
    assert all((one == two).all() for one, two in zip(forwards, reversed(backwards), strict=True))


def test_another_process_reads_the_same_order():
    code = "from vitscale.data.order import GlobalOrder; print(GlobalOrder(40, 8, 5).batch_indices(11).tolist())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.strip() == str(GlobalOrder(40, 8, 5).batch_indices(11).tolist())


def test_a_subset_is_ordered_by_its_own_images():
    chosen = np.array([4, 8, 15, 16, 23, 42])
    order = GlobalOrder(chosen, 3, 0)
    assert order.images == 6
    assert sorted(np.concatenate([order.batch_indices(0), order.batch_indices(1)])) == chosen.tolist()


@pytest.mark.parametrize("batch", [0, 11])
def test_a_global_batch_that_the_images_cannot_fill_is_refused(batch):
    with pytest.raises(UsageError, match=f"a global batch of {batch} cannot be drawn from 10"):
        GlobalOrder(10, batch, 0)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=80), st.integers(0, 5), st.data())
def test_a_larger_subset_contains_a_smaller_one(classes, seed, data):
    labels = np.array(classes)
    large = data.draw(st.integers(1, len(labels)))
    small = data.draw(st.integers(1, large))
    inner, outer = subset(labels, small, seed), subset(labels, large, seed)
    assert set(inner) <= set(outer)
    assert len(np.unique(outer)) == large
    assert outer.dtype == np.int64


@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 5), st.data())
def test_a_subset_of_equal_classes_is_balanced_to_one_image(classes, each, seed, data):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(classes), each))
    images = data.draw(st.integers(1, classes * each))
    counts = np.bincount(labels[subset(labels, images, seed)], minlength=classes)
    assert counts.max() - counts.min() <= 1


def test_a_subset_keeps_the_shares_of_unequal_classes():
    labels = np.repeat([0, 1, 2], [800, 150, 50])
    assert np.bincount(labels[subset(labels, 100, 0)]).tolist() == pytest.approx([80, 15, 5], abs=1)


def test_subsets_of_different_seeds_differ():
    labels = np.repeat([0, 1], 50)
    assert (subset(labels, 20, 0) != subset(labels, 20, 1)).any()


@pytest.mark.parametrize("images", [0, 11])
def test_a_subset_that_cannot_be_taken_is_refused(images):
    with pytest.raises(UsageError, match=f"a subset of {images} images of 10"):
        subset(np.zeros(10, dtype=np.int64), images, 0)


@settings(max_examples=50)
@given(st.integers(0, 100), st.integers(1, 12))
def test_evaluation_reads_every_image_once_at_any_world_size(images, world_size):
    shares = [evaluation_slices(images, rank, world_size) for rank in range(world_size)]
    assert np.concatenate(shares).tolist() == list(range(images))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
