"""Rank 0 and another rank of a starter, in one process: orders, reports, and how everyone ends."""

import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from vitscale.config.study import LaunchSection
from vitscale.errors import Interrupted, SetupError
from vitscale.hardware.position import Position
from vitscale.launch.board import Board, Order, Report
from vitscale.launch.env import Env, Everywhere
from vitscale.launch.inputs import Inputs
from vitscale.launch.processes import Command
from vitscale.records.round import Round

SLEEPER = Command([sys.executable, "-c", "import time; time.sleep(60)"], {})


@pytest.fixture
def results(tmp_path):
    """A results folder with a round to start."""
    folder = tmp_path / "rounds" / "0000-w2"
    folder.mkdir(parents=True)
    round_ = Round(name="0000-w2", world_size=2, nodes=1, ranks_per_node=2, device="cpu", cores=(), entries=())
    (folder / "round.json").write_text(round_.model_dump_json())
    (tmp_path / ".lock").touch()
    return tmp_path


class Follower(threading.Thread):
    """Rank 1, whose workers sleep."""

    def __init__(self, results, limits=None):
        super().__init__(daemon=True)
        place = Position(1, 1, 2, 2, "torchrun")
        self.env = Env(place, Inputs(results / "data", limits=limits or LaunchSection()))
        self.env.command = lambda folder, round_, rank: SLEEPER
        self.results, self.stop, self.raised = results, False, None

    def run(self):
        try:
            self.env.follow(self.results)
        except (Interrupted, SetupError) as error:
            self.raised = error


@pytest.fixture
def leader(results):
    """Rank 0's view of the ranks."""
    board = Board(results)
    board.clear()
    found = Everywhere(board, Position(0, 0, 2, 2, "torchrun"), patience_s=5)
    yield found
    found.end()


def wait_until(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def start(leader, results):
    leader.start(SLEEPER, results, results / "rounds" / "0000-w2")
    wait_until(lambda: Board(results).reports(2)[1].order == leader._started)


def test_all_ranks_start_end_and_are_dismissed(leader, results):
    follower = Follower(results)
    follower.start()
    for _ in range(2):
        start(leader, results)
        assert leader.codes() == [None, None]
        began = time.monotonic()
        leader.end()
        assert time.monotonic() - began < 2
    leader.order("over")
    follower.join(5)
    assert not follower.is_alive()
    assert follower.raised is None


def test_a_worker_of_another_rank_that_is_killed_is_named_by_rank_0(leader, results):
    Follower(results).start()
    start(leader, results)
    assert leader.killed() is None
    Board(results).publish(leader._order._replace(number=leader._order.number + 1, kind="signal", what="SIGKILL"))
    wait_until(lambda: leader.codes() == [None, -signal.SIGKILL])
    assert leader.killed() == (1, "SIGKILL", None)  # there is one host


def test_of_several_hosts_that_of_a_killed_rank_is_named_and_what_its_kernel_ended(results):
    leader = Everywhere(Board(results), Position(0, 0, 2, 1, "torchrun"), patience_s=5)
    before = leader.oom_kills()
    Board(results).report(1, Report("word", 0, -signal.SIGKILL, "n2", 1))
    leader.processes = [subprocess.Popen([sys.executable, "-c", ""])]
    leader.processes[0].wait()
    assert leader.killed() == (1, "SIGKILL", "host `n2`")
    assert leader.ended() == "rank 1 on host `n2` ended with status -9"
    assert leader.oom_kills() == before + 1
    assert leader.host(0) == f"host `{socket.gethostname()}`"


def test_what_an_earlier_start_left_is_for_nobody(leader, results):
    board = Board(results)
    board.publish(Order(9, "over", "", ["of an earlier start"]))
    board.report(1, Report("of an earlier start", 9, -9))
    follower = Follower(results)
    follower.start()
    wait_until(lambda: board.reports(2)[1].word != "of an earlier start")
    board.clear()  # rank 0 comes later
    start(leader, results)
    assert leader.codes() == [None, None]


def test_a_rank_that_does_not_come_is_named(results):
    leader = Everywhere(Board(results), Position(0, 0, 3, 3, "torchrun"), patience_s=0.1)
    with pytest.raises(SetupError, match="of 3 ranks these have not come: 1, 2"):
        leader.start(SLEEPER, results, results / "rounds" / "0000-w2")
    assert leader.processes == []


def test_without_rank_0_the_others_do_not_wait_for_ever(tmp_path):
    follower = Follower(tmp_path / "elsewhere", LaunchSection(start_timeout_s=0.1))
    follower.run()
    assert "rank 0 has not opened" in follower.raised.message


def test_a_rank_that_is_asked_to_stop_takes_its_worker_with_it_and_rank_0_does_not_wait(leader, results, monkeypatch):
    follower = Follower(results)
    follower.start()
    start(leader, results)

    def interrupted(board):
        raise Interrupted("stopped by SIGTERM")

    monkeypatch.setattr(Board, "order", interrupted)
    follower.join(5)
    assert isinstance(follower.raised, Interrupted)
    assert leader.codes() == [None, -signal.SIGTERM]
    began = time.monotonic()
    leader.end()
    assert time.monotonic() - began < 2


def test_the_others_leave_when_rank_0_is_not_heard_of_any_more(leader, results):
    board = Board(results)
    board.show_life()
    follower = Follower(results, LaunchSection(start_timeout_s=0.5))
    follower.start()
    began = time.monotonic()
    while time.monotonic() - began < 1.5:  # as long as it is, they stay
        board.show_life()
        time.sleep(0.05)
    assert follower.is_alive()
    follower.join(5)
    assert "rank 0 was not heard of for 0.5 s" in follower.raised.message
    assert board.reports(2)[1].code == 1


def test_rank_0_is_heard_of_while_it_leads(results, monkeypatch):
    monkeypatch.setattr("vitscale.launch.env._LIFE_S", 0.01)
    board, seen = Board(results), set()
    with Env(Position(0, 0, 1, 1, "torchrun"), Inputs(results / "data")).leading(results):
        deadline = time.monotonic() + 5
        while len(seen) < 3 and time.monotonic() < deadline:
            seen.add(board.life())
            time.sleep(0.01)
    assert len(seen) >= 3
    assert [thread for thread in threading.enumerate() if thread.name == "lead"] == []
