"""A host that does not answer is told from one that is busy, by the kernel's own account of a connection."""

import os
import socket
import struct
import threading
from types import SimpleNamespace

import psutil
import pytest

from vitscale.worker import __main__, reach
from vitscale.worker.reach import Wire, watch


@pytest.fixture
def pair():
    """Both ends of a connection over the loopback interface."""
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as one,
        server.accept()[0] as other,
    ):
        yield one, other


def wire(one):
    return Wire("10.0.0.2", one.fileno(), os.fstat(one.fileno()).st_ino)


def told(retransmits=0, probes=0, last_ack=0, last_data=900_000, state=1):
    return struct.pack("=8B13I", state, 0, retransmits, probes, *[0] * 4, *[7] * 11, last_data, last_ack)


@pytest.mark.parametrize(
    ("account", "owed_s"),
    [
        (told(last_ack=60_000), 0.0),  # nothing is sent, and nothing was asked
        (told(probes=1, last_ack=60_000), 0.0),  # full, and asked seldom: the answer is on its way
        (told(probes=7, last_ack=21_000), 21.0),
        (told(probes=7, last_ack=60_000, last_data=5), 0.005),  # data arrive, and acknowledge nothing new
        (told(retransmits=6, last_ack=25_400), 25.4),
        (told(retransmits=2, last_ack=600), 0.6),
        (told(probes=7, last_ack=21_000, state=7), 0.0),  # closed
    ],
)
def test_silence_counts_where_the_kernel_has_asked_in_vain(account, owed_s):
    assert reach._owed_s(account) == owed_s


def test_a_kernel_that_answers_owes_nothing_and_is_asked_from_now_on(pair):
    one, _ = pair
    watched = wire(one)
    watched.ask()
    assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
    assert one.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 3
    assert watched.silent_s() == 0.0
    one.sendall(b"still ours")


def test_a_descriptor_that_is_another_connection_or_closed_by_now_is_left_alone(monkeypatch, pair):
    monkeypatch.setattr(reach, "_owed_s", lambda account: 60.0)
    one, other = pair
    watched = wire(one)
    assert watched.silent_s() == 60.0
    os.dup2(other.fileno(), watched.descriptor)
    assert watched.silent_s() == 0.0
    one.close()
    assert watched.silent_s() == 0.0


def test_one_connection_to_each_other_host_is_watched(monkeypatch, pair):
    others = (("10.0.0.2", "ESTABLISHED"), ("10.0.0.2", "ESTABLISHED"), ("10.0.0.3", "CLOSE_WAIT"))
    found = [
        SimpleNamespace(
            fd=pair[0].fileno(), status=state, laddr=SimpleNamespace(ip="10.0.0.1"), raddr=SimpleNamespace(ip=ip)
        )
        for ip, state in (*others, ("10.0.0.1", "ESTABLISHED"))
    ]
    found.append(SimpleNamespace(fd=9, status="LISTEN", laddr=SimpleNamespace(ip="10.0.0.1"), raddr=()))
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(net_connections=lambda kind: found))
    assert [one.address for one in reach.wires()] == ["10.0.0.2"]


@pytest.mark.parametrize("error", [PermissionError("no"), RuntimeError("not told"), psutil.AccessDenied()])
def test_a_host_that_does_not_list_connections_is_no_reason_to_end(monkeypatch, error):
    def refused(kind):
        raise error

    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(net_connections=refused))
    assert reach.wires() == []


def test_the_host_that_does_not_answer_is_told_by_its_address(monkeypatch, pair):
    monkeypatch.setattr(reach, "_LOOK_S", 0.01)
    silent = iter([0.0, 27.5, 28.5])
    monkeypatch.setattr(Wire, "silent_s", lambda wire: next(silent, 0.0))
    heard, lost = threading.Event(), []
    watch([wire(pair[0])], lambda address: (lost.append(address), heard.set()))
    assert heard.wait(10)
    assert lost == ["10.0.0.2"]


def test_a_connection_that_closes_before_it_is_watched_is_left_out(monkeypatch, pair):
    monkeypatch.setattr(reach, "_LOOK_S", 0.01)
    monkeypatch.setattr(Wire, "silent_s", lambda wire: 60.0)
    gone = wire(pair[0])._replace(address="10.0.0.3")
    pair[0].close()
    heard, lost = threading.Event(), []
    watch([gone, wire(pair[1])], lambda address: (lost.append(address), heard.set()))
    assert heard.wait(10)
    assert lost == ["10.0.0.2"]


def test_a_rank_whose_last_words_reach_no_folder_ends_all_the_same(monkeypatch):
    ended, said = threading.Event(), []
    monkeypatch.setattr(__main__, "_LAST_WORDS_S", 0.01)
    monkeypatch.setattr(__main__, "_end", ended.set)

    def late(error):
        said.append(error.message)
        assert ended.wait(10)

    __main__._cut_off("10.0.0.2", late)
    assert said == ["host `10.0.0.2` has not answered for 28 s"]


def test_a_connection_that_did_not_come_about_names_the_host():
    told = (
        "RuntimeError: Gloo connectFullMesh failed with [gloo/transport/tcp/pair.cc:152] timed out connecting: "
        "SO_ERROR: No route to host, remote=[10.0.0.1]:44938$1"  # as recorded on two hosts of a lab
    )
    assert reach.unreached(told) == "host `10.0.0.1` has not answered: No route to host"
    assert reach.unreached(told.replace("10.0.0.1", "127.0.0.1")) is None
    assert reach.unreached("RuntimeError: Connection closed by peer [10.0.0.1]:44938") is None
