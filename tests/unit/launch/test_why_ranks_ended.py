"""What is told of a round's end, where several ranks say something of it."""

import pytest

from vitscale.hardware import oom_kills
from vitscale.launch.attend import _first, _when
from vitscale.records.round import Beat, Failure


def cut_off(rank, host):
    return Failure(rank, "exception", f"host `{host}` has not answered for 28 s")


RESET = Failure(0, "exception", "Connection reset by peer")


@pytest.mark.parametrize(
    ("failures", "rank"),
    [
        ((cut_off(0, "a"), cut_off(1, "b"), cut_off(2, "b")), 1),  # rank 0 is behind the cut
        ((RESET, cut_off(1, "a"), cut_off(2, "b"), cut_off(3, "b")), 2),
        ((cut_off(0, "b"), cut_off(1, "a")), 0),
        ((RESET, Failure(1, "exception", "ValueError: no")), 1),
        ((RESET, Failure(1, "exception", "host `b` has not answered: Connection timed out")), 1),
        ((cut_off(0, "b"), Failure(1, "setup", "no interface")), 1),
    ],
)
def test_of_several_failures_the_one_that_tells_most_is_told(failures, rank):
    assert _first(failures).rank == rank


@pytest.mark.parametrize(
    ("beat", "words"),
    [
        (None, "before its first step"),
        (Beat(0, "setup", 0, 9, None), "before its first step"),
        (Beat(0, "steady", 3, 9, 2.5), "after step 3 (steady)"),
        (Beat(1, "done", 0, 0, None), "after its last step"),
    ],
)
def test_a_killed_rank_is_told_with_where_it_was(beat, words):
    assert _when(beat) == words


def test_what_the_kernel_ended_for_memory_is_counted_on_the_whole_host(tmp_path, monkeypatch):
    assert oom_kills.oom_kills() >= 0
    counts = tmp_path / "vmstat"
    monkeypatch.setattr(oom_kills, "COUNTS", counts)
    assert oom_kills.oom_kills() == 0  # no Linux
    counts.write_text("pgfault 7\noom_kill 3\noom_kills_of_another_name 9\n")
    assert oom_kills.oom_kills() == 3
    counts.write_text("pgfault 7\n")
    assert oom_kills.oom_kills() == 0  # older than 4.13
