"""The agent of a host: it starts what it is told to, and ends it when nobody is there to tell."""

import json
import os
import signal
import threading
import time

import psutil
import pytest

from vitscale.launch import agent as module
from vitscale.launch.agent import Agent, Lines, Work
from vitscale.records.round import Entry, Round


class Talk:
    """An agent in a thread, and both ends of what is said."""

    def __init__(self, results):
        orders, self.orders = os.pipe()
        self.reports, reports = os.pipe()
        self.results, self._descriptors = results, (orders, reports, self.reports)
        self.thread = threading.Thread(target=Agent(orders, reports).run, daemon=True)
        self.thread.start()
        self._lines, self.heard = Lines(self.reports), []

    def tell(self, **document):
        os.write(self.orders, json.dumps(document).encode() + b"\n")

    def wait(self, condition):
        deadline = time.monotonic() + 5
        while True:
            self.heard += self._lines.read()
            if found := [one for one in self.heard if condition(one)]:
                return found[0]
            assert time.monotonic() < deadline, self.heard
            time.sleep(0.01)

    def start(self, name="0000-w2"):
        self.tell(serve=Work(str(self.results), name, 1, {"PATH": "/usr/bin:/bin"})._asdict())
        self.wait(lambda one: "ready" in one)
        self.tell(order="start")
        self.wait(lambda one: one.get("codes") == [None])
        (rank,) = (one for one in psutil.Process().children() if one.cmdline()[:1] == ["sleep"])
        return rank

    def close(self):
        os.close(self.orders)
        self.thread.join(5)
        for descriptor in self._descriptors:
            os.close(descriptor)


@pytest.fixture
def talk(tmp_path, monkeypatch):
    """An agent whose rank is `sleep`, for the second of two hosts."""
    monkeypatch.setattr(module, "worker", lambda round_: ["sleep", "60"])
    entry = Entry(folder="runs/a/launch0", run_id="a", launch=0, spec={})
    round_ = Round(name="0000-w2", world_size=2, nodes=2, ranks_per_node=1, device="cpu", cores=(), entries=(entry,))
    (tmp_path / "rounds" / "0000-w2").mkdir(parents=True)
    (tmp_path / "rounds" / "0000-w2" / "round.json").write_text(round_.model_dump_json())
    talk = Talk(tmp_path)
    yield talk
    talk.close()


def test_lines_come_whole_however_they_are_cut_and_what_is_no_object_is_passed_over():
    reading, writing = os.pipe()
    lines = Lines(reading)
    told = b'Welcome to node1!\n{"a": 1}\n[1]\n\n{"b": "\xc3\xa4"}\n{"c"'
    found = []
    for place in range(len(told)):
        os.write(writing, told[place : place + 1])
        found += lines.read()
    assert found == [{"a": 1}, {"b": "ä"}]
    assert not lines.closed
    os.close(writing)
    assert not list(lines.read())
    assert lines.closed
    os.close(reading)


def test_a_signal_reaches_the_rank_and_its_end_is_told(talk):
    rank = talk.start()
    talk.tell(order="signal", signal="SIGTERM")
    talk.wait(lambda one: one.get("codes") == [-signal.SIGTERM])
    assert not psutil.pid_exists(rank.pid)


def test_what_is_no_order_changes_nothing(talk):
    talk.tell(order="start")
    talk.tell(order="stay")
    rank = talk.start()
    talk.tell(order="dance")
    talk.tell(something="else")
    talk.heard.clear()
    talk.wait(lambda one: one.get("codes") == [None])
    assert rank.is_running()


def test_ranks_end_when_the_tool_is_gone(talk):
    rank = talk.start()
    os.close(talk.orders)
    talk.thread.join(5)
    assert not talk.thread.is_alive()
    assert not psutil.pid_exists(rank.pid)
    talk.orders = os.open(os.devnull, os.O_WRONLY)


def test_ranks_end_when_nothing_is_heard_of_the_tool(talk, monkeypatch):
    rank = talk.start()
    monkeypatch.setattr(module, "SILENCE_S", 0.2)
    talk.thread.join(5)
    assert not talk.thread.is_alive()
    assert not psutil.pid_exists(rank.pid)


def test_life_is_shown_while_nothing_changes(talk, monkeypatch):
    monkeypatch.setattr(module, "LIFE_S", 0.02)
    talk.start()
    for _ in range(3):
        talk.heard.clear()
        talk.wait(lambda one: one.get("codes") == [None])


def test_a_round_that_is_not_there_is_told(talk):
    talk.tell(serve=Work(str(talk.results), "0009-w2", 1, {})._asdict())
    assert talk.wait(lambda one: "failed" in one) == {"failed": "does not see the results folder"}
