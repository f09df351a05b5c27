"""What the benchmarks of the verdict count as a hit, with verdicts that stand for real ones."""

import random

from benchmarks import attribution, clean_verdicts
from benchmarks.attribution import CASES, CLEAN, LINKS, Put, Scored
from benchmarks.clean_verdicts import Named


def by_name(figures):
    return {figure.name: figure for figure in figures}


def scored(*sizes):
    put = (Put("input", "data", None, 0.3),)
    return [Scored(put, 0.1, [], size is not None, size, None) for size in sizes]


def test_sizes_that_are_far_off_miss_a_target_of_their_own():
    near = by_name(attribution.figures(scored(*[1.19] * 9, 1.21)))
    far = by_name(attribution.figures(scored(*[1.19] * 8, 1.21, 0.79)))
    name = "size within 20%, of causes that are right"
    assert (near[name].median, near[name].target, near[name].met) == ("90%", ">= 90%", True)
    assert (far[name].median, far[name].met) == ("80%", False)
    assert far["cases judged right"].met


def test_a_cause_that_is_not_right_has_no_size_and_misses_the_other_target():
    figures = by_name(attribution.figures(scored(*[1.0] * 8, None, None)))
    assert figures["size within 20%, of causes that are right"].met
    assert figures["cases judged right"].met is False


def test_no_kind_of_cause_is_both_drawn_and_told_as_never_drawn():
    cases = [*attribution.drawn(random.Random(1))]
    kinds = {put.kind for case in cases for put in case}
    assert (len(cases), sum(not case for case in cases)) == (CASES - LINKS, CLEAN)
    assert kinds == {"straggler", "input", "contention", "optimizer"}
    assert not kinds & {*attribution.NEVER}
    assert {"micro_batch", "launch", "imbalance", "small_buckets"} < {*attribution.NEVER}


def test_a_shrunk_micro_batch_is_false_under_weak_and_contention_is_counted_apart():
    own = [[Named("strong", "micro_batch"), Named("weak", "contention")], [Named("weak", "noise")]]
    figures = by_name(clean_verdicts.figures(own))
    assert figures["repetitions of quick without a false cause"].met
    assert figures["repetitions with contention under weak"].median == "1"
    assert figures["repetitions with contention under strong"].median == "0"
    figures = by_name(clean_verdicts.figures([*own, [Named("weak", "micro_batch")]]))
    clean = figures["repetitions of quick without a false cause"]
    assert (clean.median, clean.met) == ("2", False)
    assert "micro_batch under weak in 1" in clean.note
