"""Hosts introduce themselves before they talk: what differs is told to every rank, and nobody waits for ever."""

import itertools
import json
import threading

import pytest

pytest.importorskip("torch")

from vitscale.hardware import interfaces
from vitscale.hardware.position import Position
from vitscale.worker.meeting import arrive, introduce, limited

SAME = {"torch": "2.14.1", "timm": "1.0.20", "kernel": "6.1"}


class Store:
    """torch's, without the file: a value is waited for."""

    def __init__(self):
        self._values, self._changed = {}, threading.Condition()

    def set(self, key, value):
        with self._changed:
            self._values[key] = value.encode()
            self._changed.notify_all()

    def get(self, key):
        with self._changed:
            assert self._changed.wait_for(lambda: key in self._values, 5), key
            return self._values[key]

    def add(self, key, amount):
        with self._changed:
            self._values[key] = self._values.get(key, 0) + amount
            return self._values[key]


def meet(versions, interfaces=("eth0", "eth0"), ranks_per_node=1):
    """What each rank hears; ranks of a host say the same."""
    store, world_size = Store(), len(versions) * ranks_per_node
    heard = [None] * world_size

    def rank(number):
        node, local_rank = divmod(number, ranks_per_node)
        place = Position(number, local_rank, world_size, ranks_per_node, "test")
        heard[number] = introduce(
            store, place, versions[node], "gloo", {"GLOO_SOCKET_IFNAME": interfaces[node % len(interfaces)]}
        )

    threads = [threading.Thread(target=rank, args=(number,)) for number in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return heard


def test_equal_hosts_meet_and_know_by_which_interfaces():
    heard = meet([SAME, SAME], ranks_per_node=2)
    assert len(heard) == 4
    assert set(heard) == {("; reached are host 0 by `eth0`, host 1 by `eth0`", None)}


def test_different_versions_are_told_to_every_rank_with_the_difference():
    heard = meet([SAME, {**SAME, "timm": "0.0.1"}, {**SAME, "accelerate": "1.15"}])
    messages = {problem.message for _, problem in heard}
    assert messages == {
        "hosts differ: accelerate not installed on hosts 0, 1, 1.15 on host 2; "
        "timm 1.0.20 on hosts 0, 2, 0.0.1 on host 1"
    }


def test_kernels_may_differ():
    assert meet([SAME, {**SAME, "kernel": "5.4", "driver": "550"}])[0][1] is None


def test_a_host_that_is_reached_by_itself_only_is_named(monkeypatch):
    networks = itertools.count()
    monkeypatch.setattr(interfaces, "_network", lambda: str(next(networks)))
    problem = meet([SAME, SAME], ("eth0", "lo"))[0][1]
    assert problem.message.startswith("host 1 is reached by `lo`, which is itself: GLOO_SOCKET_IFNAME=lo")
    assert "GLOO_SOCKET_IFNAME=<interface>" in problem.hint


def test_hosts_of_one_machine_meet_by_the_loopback():
    assert meet([SAME, SAME], ("lo", "lo"))[0][1] is None


def test_the_last_rank_lets_all_go_on():
    store, done = Store(), []
    threads = [threading.Thread(target=lambda: (arrive(store, 3), done.append(1))) for _ in range(2)]
    for thread in threads:
        thread.start()
    assert done == []
    arrive(store, 3)
    for thread in threads:
        thread.join()
    assert len(done) == 2


def test_what_hangs_is_told_and_what_does_not_is_not():
    late = threading.Event()
    with limited(0.05, late.set):
        assert late.wait(5)
    late.clear()
    with limited(0.05, late.set):
        pass
    assert not late.wait(0.2)


def test_what_a_host_says_is_json_and_nothing_is_unpickled():
    store = Store()
    introduce(store, Position(0, 0, 1, 1, "test"), SAME, "gloo", {"GLOO_SOCKET_IFNAME": "lo"})
    assert json.loads(store.get("host0"))["versions"] == SAME
