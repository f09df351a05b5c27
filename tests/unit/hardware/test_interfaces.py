"""By which interface a host is reached: what gloo and NCCL choose, told with the reason."""

import socket

import pytest

from vitscale.hardware import interfaces
from vitscale.hardware.interfaces import astray, chosen, interface_of, listening


@pytest.mark.parametrize(
    ("backend", "environ", "name", "loopback"),
    [
        ("gloo", {"GLOO_SOCKET_IFNAME": "eth1"}, "eth1", False),
        ("gloo", {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "eth1"}, "lo", True),
        ("nccl", {"NCCL_SOCKET_IFNAME": "=ib0,ib1"}, "ib0", False),
    ],
)
def test_what_the_user_set_is_taken(backend, environ, name, loopback):
    found = chosen(backend, environ)
    assert (found.name, found.loopback) == (name, loopback)
    assert found.why.startswith(f"{backend.upper()}_SOCKET_IFNAME=")


@pytest.mark.parametrize("address", ["127.0.1.1", "127.0.0.1"])
def test_a_name_that_is_the_hosts_own_loopback_is_told(monkeypatch, address):
    """Debian's /etc/hosts: ranks of other hosts would look for this one on themselves."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 1, 6, "", (address, 0))])
    found = chosen("gloo", {})
    assert (found.name, found.loopback, found.why) == ("lo", True, "the host's name has its address")


def test_a_name_without_an_address_of_this_host_is_the_loopback(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, 1, 6, "", ("192.0.2.7", 0))])
    found = chosen("gloo", {})
    assert (found.name, found.why) == ("lo", "the host's name has no address of this host")


def test_nccl_prefers_infiniband_unless_it_is_told_not_to(tmp_path):
    (tmp_path / "mlx5_0").mkdir()
    found = interfaces._by_nccl({}, tmp_path)
    assert (found.name, found.loopback) == ("mlx5_0", False)
    assert interfaces._by_nccl({"NCCL_IB_DISABLE": "1"}, tmp_path).name != "mlx5_0"


@pytest.mark.parametrize(
    ("address", "name"),
    [("0.0.0.0", "all"), ("::", "all"), ("::1", "lo"), ("::ffff:127.0.0.1", "lo"), ("192.0.2.7", "unknown")],
)
def test_an_address_belongs_to_an_interface(address, name):
    assert interface_of(address) == name


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("^lo,docker0", "eth0"), ("^docker", "lo"), ("^=lo,docker0,eth0", "eth1"), ("^lo,docker,eth", "ib0"),
        ("eth1", "eth1"), ("eth", "eth0"), ("=eth", "eth"), ("ib", "ib0"),
    ],
)  # fmt: skip
def test_nccls_list_of_interfaces_is_read_as_nccl_reads_it(monkeypatch, given, name):
    monkeypatch.setattr(interfaces, "_up", lambda: ["lo", "docker0", "eth0", "eth1", "ib0"])
    found = chosen("nccl", {"NCCL_SOCKET_IFNAME": given})
    assert (found.name, found.loopback) == (name, name == "lo")


def test_hosts_of_one_machine_reach_one_another_by_the_loopback():
    one = chosen("gloo", {"GLOO_SOCKET_IFNAME": "lo"})
    other = one.model_copy(update={"network": "another"})
    assert one.network
    assert astray([one, one]) == []
    assert astray([one, other]) == [0, 1]
    assert astray([one, other.model_copy(update={"loopback": False})]) == [0]


def test_a_socket_of_ours_is_seen():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        one.listen()
        assert f"lo:{one.getsockname()[1]}" in listening()
