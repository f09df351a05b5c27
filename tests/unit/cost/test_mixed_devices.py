"""Images dealt by rate: all of them, near their quotas, equal to equals; and the paper's five unlike GPUs."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitscale.cost import mixed

RATES = st.lists(st.floats(0.1, 1e4), min_size=1, max_size=12)


@given(RATES, st.integers(0, 500))
def test_every_image_is_dealt_and_nobody_is_without(rates, more):
    images = len(rates) + more
    dealt = mixed.proportional(images, rates)
    assert sum(dealt) == images
    assert min(dealt) >= 1


@given(RATES, st.integers(0, 500))
def test_nobody_is_a_whole_image_above_a_quota_of_one_or_more(rates, more):
    images = len(rates) + more
    for dealt, rate in zip(mixed.proportional(images, rates), rates, strict=True):
        assert dealt < max(1, images * rate / sum(rates)) + 1


@given(st.lists(st.tuples(st.floats(0.1, 1e4), st.integers(1, 100)), min_size=1, max_size=12), st.data())
def test_no_rank_is_dealt_more_than_it_holds_and_every_image_is_dealt(ranks, data):
    rates, most = zip(*ranks, strict=True)
    images = data.draw(st.integers(len(rates), sum(most)))
    dealt = mixed.within(images, rates, most)
    assert sum(dealt) == images
    assert all(1 <= own <= held for own, held in zip(dealt, most, strict=True))


@given(RATES, st.integers(0, 500))
def test_where_all_hold_all_memory_changes_nothing(rates, more):
    images = len(rates) + more
    assert mixed.within(images, rates, [images] * len(rates)) == mixed.proportional(images, rates)


@given(st.lists(st.tuples(st.floats(0.1, 1e4), st.integers(1, 100)), min_size=1, max_size=12), st.data())
def test_in_parts_no_pass_is_larger_than_its_rank_holds_and_every_image_is_dealt(ranks, data):
    rates, most = zip(*ranks, strict=True)
    images = data.draw(st.integers(len(rates), sum(most)))
    dealt = mixed.in_parts(images, rates, most)
    assert sum(dealt.images) == images
    for own, parts, held in zip(*dealt, most, strict=True):
        assert own % parts == 0
        assert 1 <= own // parts <= held
    asked = mixed.proportional(images, rates)
    for rank, (own, parts) in enumerate(zip(*dealt, strict=True)):
        assert parts == 1 or asked[rank] - parts < own <= asked[rank]


def test_a_rank_that_does_not_hold_its_share_takes_it_in_parts():
    assert mixed.in_parts(64, [3, 1], [64, 64]) == ((48, 16), (1, 1))
    assert mixed.in_parts(64, [3, 1], [40, 64]) == ((48, 16), (2, 1))
    assert mixed.in_parts(64, [3, 1], [20, 64]) == ((48, 16), (3, 1))
    assert mixed.in_parts(64, [3, 1], [10, 64]) == ((45, 19), (5, 1))  # 48 are not five equal parts
    assert mixed.in_parts(66, [1, 1, 1], [21, 64, 64]) == ((22, 22, 22), (2, 1, 1))
    assert mixed.in_parts(64, [3, 1], [47, 64]) == ((48, 16), (2, 1))
    assert mixed.in_parts(66, [33, 33], [32, 64]) == ((32, 34), (1, 1))  # of one image more half would be no whole one


def test_what_a_full_rank_cannot_take_the_others_take_by_rate():
    assert mixed.within(64, [2, 1, 1], [20, 64, 64]) == (20, 22, 22)
    assert mixed.within(64, [4, 2, 1], [20, 64, 64]) == (20, 29, 15)
    assert mixed.within(64, [4, 2, 1], [20, 25, 64]) == (20, 25, 19)
    assert mixed.within(64, [4, 2, 1], [20, 25, 19]) == (20, 25, 19)


def test_shares_are_in_proportion():
    assert mixed.proportional(64, [2, 1, 1]) == (32, 16, 16)
    assert mixed.proportional(66, [2, 1, 1]) == (33, 17, 16)
    assert mixed.proportional(4, [1000, 1, 1]) == (2, 1, 1)


@given(st.integers(1, 8), st.integers(1, 64), st.floats(0.1, 1e4))
def test_equals_take_the_same(ranks, each, rate):
    assert mixed.proportional(ranks * each, [rate] * ranks) == (each,) * ranks


def test_rates_that_timing_cannot_tell_apart_are_one():
    assert mixed.alike([100, 103, 50, 49]) == [101.5, 101.5, 49.5, 49.5]
    assert mixed.alike([100, 106]) == [100, 106]


@given(RATES, st.integers(0, 100))
def test_weighted_means_of_ranks_are_the_mean_of_images(rates, more):
    dealt = mixed.proportional(len(rates) + more, rates)
    weights = [mixed.weight(dealt, rank) for rank in range(len(dealt))]
    assert math.fsum(weights) / len(weights) == pytest.approx(1)
    assert weights[0] / dealt[0] == pytest.approx(weights[-1] / dealt[-1])


@given(st.lists(st.floats(1, 100), min_size=2, max_size=6))
def test_in_proportion_all_are_as_fast_as_the_sum_of_their_rates(rates):
    dealt = mixed.proportional(100_000, rates)
    assert mixed.images_per_s(dealt, rates) == pytest.approx(sum(rates), rel=0.01)


# tesla/log/{1_GPU,4_GPUs,5_GPUs}/ of trinhgiahuy/Scalable_ViT_DT, the logs beside arXiv 2602.21081: ViT-B/16 at 224 px
# on CIFAR-10, micro-batch 16, fp32, hosts with one GPU each. Milliseconds are medians of rank 0's DeepSpeed timers.
ALONE_S = 712.93 / 3125
"""A step of one RTX 3070 alone: p1_b16_e10/metrics.csv, 50,000 images in steps of 16."""
RTX_3070 = 16 / (0.0648 + 0.1402)
TESLA_P4 = 16 / (0.2355 + 0.4325)
"""Rank 0 of four and of five: forward and backward without the all-reduce."""
GTX_1070 = TESLA_P4
"""Nobody timed it: its fp32 peak is above the P4's (6.5 and 5.5 TFLOP/s), so this is at most what it does."""
FIVE = [TESLA_P4, RTX_3070, RTX_3070, GTX_1070, RTX_3070]
ALL_REDUCE_S, UPDATE_S = 4.75, 0.0487
"""Of five hosts. Of four, without the GTX 1070's, it is 0.5 s: 1.6 x 343 MB take 4.7 s on a link of 1 Gbit/s."""
SEEN = 80 / (3435.9 / 625) * ALONE_S / 16
"""All five over one, mean of ten epochs of 625 steps."""
FIXED_S = ALL_REDUCE_S + UPDATE_S


def gain(micro_batches, grad_accum):
    """Over one RTX 3070 alone."""
    return mixed.images_per_s(micro_batches, FIVE, grad_accum, FIXED_S) * ALONE_S / 16


def test_the_papers_five_gpus_are_0_21_of_one_by_their_rates():
    assert round(SEEN, 2) == 0.21
    assert gain([16] * 5, 1) == pytest.approx(SEEN, rel=0.02)


def test_the_papers_five_gpus_end_above_one():
    dealt = mixed.proportional(80, mixed.alike(FIVE))
    assert dealt == (7, 22, 22, 7, 22)
    # Their all-reduce alone takes 4.7 s a step: no split of 80 images is faster than one GPU.
    assert gain(dealt, 1) < 0.25
    # With 8 micro-steps to an all-reduce the even split is still slower than one GPU, the proportional one is not.
    assert gain([16] * 5, 8) < 0.91
    assert gain(dealt, 8) > 1.25
