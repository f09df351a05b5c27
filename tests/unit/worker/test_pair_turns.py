"""Every pair is timed once, and nobody has two partners at a time."""

import itertools

import pytest

pytest.importorskip("torch")

from vitscale.worker.links import turns


@pytest.mark.parametrize("count", range(1, 12))
def test_every_pair_has_one_turn(count):
    found = turns(count)
    assert sorted(itertools.chain(*found)) == list(itertools.combinations(range(count), 2))
    assert len(found) <= count
    for turn in found:
        members = [member for pair in turn for member in pair]
        assert len(members) == len(set(members))
