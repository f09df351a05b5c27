"""Two time limits, told apart by where a rank is."""

from pathlib import Path

import pytest

from vitscale.config.study import LaunchSection
from vitscale.launch import attend
from vitscale.launch.attend import _begun, _furthest_behind, _Patience
from vitscale.launch.processes import poll_s
from vitscale.records.round import Beat, Heartbeat, heartbeat_path, read_heartbeats


@pytest.fixture
def now(monkeypatch):
    class Time:
        at = 100.0

        def __call__(self):
            return self.at

    time = Time()
    monkeypatch.setattr(attend.time, "monotonic", time)
    return time


def test_a_start_may_take_longer_than_a_step(now):
    patience = _Patience(LaunchSection(start_timeout_s=60, step_timeout_s=10), _since=now.at)
    assert patience.exceeded(None) is None
    now.at += 59
    assert patience.exceeded(None) is None
    now.at += 2
    assert "start_timeout_s" in patience.exceeded(None)


def test_each_sign_of_life_starts_the_limit_anew(now):
    patience = _Patience(LaunchSection(start_timeout_s=60, step_timeout_s=10), _since=now.at)
    for step in range(1, 20):
        now.at += 9
        assert patience.exceeded(Beat(0, "steady", step, 100, 2.3)) is None
    now.at += 11
    assert "no step for 10 s (launch.step_timeout_s)" in patience.exceeded(Beat(0, "steady", 19, 100, 2.3))


def test_the_next_launch_of_a_round_is_a_start_again(now):
    patience = _Patience(LaunchSection(start_timeout_s=60, step_timeout_s=10), _since=now.at)
    assert patience.exceeded(Beat(0, "steady", 50, 50, 2.3)) is None
    now.at += 1
    assert patience.exceeded(Beat(1, "setup", 0, 0, None)) is None
    now.at += 40
    assert patience.exceeded(Beat(1, "setup", 0, 0, None)) is None


def test_a_heartbeat_is_overwritten_in_place(tmp_path):
    assert read_heartbeats(tmp_path, 4, 4) == [None] * 4
    heart = Heartbeat(tmp_path, 3, ranks_per_node=1)
    beats = [
        Beat(0, "import", 0, 0, None),
        Beat(2, "steady", 999, 1000, 123456.789),
        Beat(3, "done", 0, 0, float("nan")),
    ]
    for beat in beats:
        heart.beat(beat)
        *_, found = read_heartbeats(tmp_path, 4, 4)
        assert found[:4] == beat[:4]
        assert heartbeat_path(tmp_path, 3).stat().st_size == 96


def test_ranks_of_a_host_share_a_file_in_which_each_has_its_own_line(tmp_path):
    hearts = {rank: Heartbeat(tmp_path, rank, ranks_per_node=2) for rank in (3, 0, 1)}
    hearts[3].beat(Beat(0, "steady", 7, 9, 2.5))
    hearts[1].beat(Beat(0, "warmup", 1, 9, None))
    beats = [None, Beat(0, "warmup", 1, 9, None), None, Beat(0, "steady", 7, 9, 2.5)]
    assert read_heartbeats(tmp_path, 2, 4) == beats  # line 0 of either file is a hole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heartbeat.node000", "heartbeat.node001"]
    with heartbeat_path(tmp_path, 1).open("r+b") as file:
        file.truncate(96 + 4)
    assert read_heartbeats(tmp_path, 3, 4) == [*beats[:3], None]


def test_one_look_at_4096_ranks_opens_a_file_for_each_host(tmp_path, monkeypatch):
    beat = Beat(0, "steady", 7, 9, 2.5)
    Heartbeat(tmp_path, 0, 8).beat(beat)
    rest = heartbeat_path(tmp_path, 0).read_text().partition(" ")[2]
    for node in range(512):
        lines = (f"{rank} {rest.rstrip()}".ljust(95) + "\n" for rank in range(8 * node, 8 * node + 8))
        heartbeat_path(tmp_path, node).write_text("".join(lines))
    opened, read = [], Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (opened.append(path), read(path))[1])
    assert read_heartbeats(tmp_path, 512, 4096) == [beat] * 4096
    assert len(opened) == 512


def test_many_ranks_are_looked_at_less_often():
    assert [poll_s(ranks) for ranks in (1, 8, 500)] == [0.1] * 3
    assert poll_s(4096) == pytest.approx(0.82, abs=0.01)
    assert poll_s(4096, 0.05) == poll_s(4096)
    assert poll_s(8, 0.05) == 0.05


def test_of_ranks_in_one_step_the_one_that_began_fewer_collectives_is_named(tmp_path):
    beats = [Beat(0, "steady", 3, 9, None)] * 3
    assert _furthest_behind(beats, _begun(tmp_path)) == "ranks 0, 1, 2"
    (tmp_path / "stderr.log").write_text(
        "rank 0 has begun 42 collectives\nn1: rank 1 has begun 41 collectives\nrank 2 has begun 42 collectives\n"
    )
    begun = _begun(tmp_path)
    assert _furthest_behind(beats, begun) == "rank 1"
    ahead = [beats[0], Beat(0, "steady", 4, 9, None), beats[0]]
    assert _furthest_behind(ahead, begun) == "ranks 0, 2"
    assert _furthest_behind(beats, {0: 42, 1: 41}) == "ranks 0, 1, 2"  # rank 2 did not answer
