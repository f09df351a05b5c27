"""By which network interface other hosts reach this one's ranks: what gloo and NCCL choose, and where sockets listen.

Sources: torch 2.14, `ProcessGroupGloo::createDefaultDevice`; NCCL's manual, `NCCL_SOCKET_IFNAME` and `NCCL_IB_DISABLE`.
"""

from __future__ import annotations

import hashlib
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from vitscale.records.examination import Interface

_LOOPBACK = "lo"
_BOOT, _NETWORK = Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/net")
_INFINIBAND = Path("/sys/class/infiniband")
_PASSED_OVER = ("lo", "docker", "veth", "br-", "virbr")
"""NCCL takes `lo` and `docker` last; the others lead to containers and virtual machines of this host."""


def chosen(backend: str, environ: Mapping[str, str]) -> Interface:
    """The interface that a backend's ranks are reached by."""
    variable = "NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
    if given := environ.get(variable, ""):
        name = _meant(given) if backend == "nccl" else given.split(",")[0]
        found = Interface(name=name, why=f"{variable}={given}", loopback=name == _LOOPBACK)
    else:
        found = _by_nccl(environ) if backend == "nccl" else _by_name()
    return found.model_copy(update={"network": _network()})


def astray(interfaces: Sequence[Interface]) -> list[int]:
    """Numbers of the hosts that others do not reach: by the loopback, where not all are one machine."""
    if len({one.network for one in interfaces}) == 1:
        return []
    return [number for number, one in enumerate(interfaces) if one.loopback]


def _network() -> str:
    """The running kernel and the network of this process, as a digest; not its name."""
    try:
        told = f"{_BOOT.read_text()} {_NETWORK.stat().st_ino}"
    except OSError:
        told = socket.gethostname()
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def _meant(given: str) -> str:
    """NCCL's list: beginnings of names, `=` for whole names, `^` for all but these, which leaves `lo` in."""
    rest = given.removeprefix("^")
    names = rest.removeprefix("=").split(",")
    fits = str.__eq__ if rest.startswith("=") else str.startswith
    if given.startswith("^"):
        return next((name for name in _up() if not any(fits(name, one) for one in names)), _LOOPBACK)
    return next((name for one in names for name in _up() if fits(name, one)), names[0])


def _up() -> list[str]:
    return [name for name, state in psutil.net_if_stats().items() if state.isup]


def _by_name() -> Interface:
    """gloo: the first address of the host's own name that a socket can be bound to."""
    name = socket.gethostname()
    try:
        found = [(one[0], str(one[4][0])) for one in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
    except OSError:
        found = []
    address = next((address for family, address in found if _can_bind(family, address)), None)
    if address is None:
        return Interface(name=_LOOPBACK, why="the host's name has no address of this host", loopback=True)
    interface = interface_of(address)
    return Interface(name=interface, why="the host's name has its address", loopback=interface == _LOOPBACK)


def _can_bind(family: int, address: str) -> bool:
    try:
        with socket.socket(family, socket.SOCK_STREAM) as one:
            one.bind((address, 0))
    except OSError:
        return False
    return True


def _by_nccl(environ: Mapping[str, str], infiniband: Path = _INFINIBAND) -> Interface:
    cards = sorted(path.name for path in infiniband.iterdir()) if infiniband.is_dir() else []
    if cards and environ.get("NCCL_IB_DISABLE", "0") == "0":
        return Interface(name=",".join(cards), why="NCCL prefers InfiniBand and RoCE", loopback=False)
    up = _up()
    names = [name for name in up if not name.startswith(_PASSED_OVER)] or up or [_LOOPBACK]
    return Interface(name=names[0], why="NCCL takes the first that is up", loopback=names[0] == _LOOPBACK)


def interface_of(address: str) -> str:
    """The interface that has an address of this host; `all` where a socket of that address listens on every one."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if parsed.is_unspecified:
        return "all"
    parsed = getattr(parsed, "ipv4_mapped", None) or parsed
    if parsed.is_loopback:
        return _LOOPBACK
    named: dict[str, list[Any]] = psutil.net_if_addrs()
    held = {name: [one.address.partition("%")[0] for one in addresses] for name, addresses in named.items()}
    return next((name for name, addresses in held.items() if str(parsed) in addresses), "unknown")


def listening() -> list[str]:
    """Where this process listens, `eth0:41235`."""
    sockets = psutil.Process().net_connections("tcp")
    found = [one.laddr for one in sockets if one.status == psutil.CONN_LISTEN]
    return sorted({f"{interface_of(one.ip)}:{one.port}" for one in found})
