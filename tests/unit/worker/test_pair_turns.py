"""Every pair is timed once, and nobody has two partners at a time."""

import itertools

import pytest

pytest.importorskip("torch")

import torch

from vitscale.records.examination import PairTiming
from vitscale.worker import links
from vitscale.worker.distributed import Ranks
from vitscale.worker.links import turns


@pytest.mark.parametrize("count", range(1, 12))
def test_every_pair_has_one_turn(count):
    found = turns(count)
    assert sorted(itertools.chain(*found)) == list(itertools.combinations(range(count), 2))
    assert len(found) <= count
    for turn in found:
        members = [member for pair in turn for member in pair]
        assert len(members) == len(set(members))


@pytest.fixture
def timed(monkeypatch):
    """Which pairs every rank of a world times with whom: pair -> ranks and their partners."""

    def time(asked, world_size, ranks_per_node):
        found = {}

        def pair_timing(pair, peer, largest_bytes, ranks):
            found.setdefault(pair, set()).add((ranks.rank, peer))
            return PairTiming(a=pair[0], b=pair[1], bytes=4, there_s=(1.0,), back_s=(1.0,), bytes_per_s=4.0)

        monkeypatch.setattr(links, "_pair_timing", pair_timing)
        monkeypatch.setattr(links, "barrier", lambda: None)
        monkeypatch.setattr(links, "gathered", lambda document, ranks: [document])
        told = []
        for rank in range(world_size):
            own = Ranks(rank, rank % ranks_per_node, world_size, ranks_per_node, torch.device("cpu"))
            told += [(one.a, one.b) for one in asked([], own)]
        assert sorted(told) == sorted(found)  # one of the two tells
        return found

    return time


def test_between_hosts_the_first_rank_of_each_talks(timed):
    assert timed(links.pairs, 6, 2) == {(0, 1): {(0, 2), (2, 0)}, (0, 2): {(0, 4), (4, 0)}, (1, 2): {(2, 4), (4, 2)}}


def test_inside_of_each_of_several_hosts_all_pairs_of_its_ranks_talk(timed):
    assert timed(links.pairs_inside, 4, 2) == {(0, 1): {(0, 1), (1, 0)}, (2, 3): {(2, 3), (3, 2)}}
    assert timed(links.pairs_inside, 6, 3).keys() == {(0, 1), (0, 2), (1, 2), (3, 4), (3, 5), (4, 5)}
    assert timed(links.pairs_inside, 4, 4) == timed(links.pairs_inside, 4, 1) == {}
    assert timed(links.pairs, 3, 3).keys() == {(0, 1), (0, 2), (1, 2)}  # of a single host its ranks
