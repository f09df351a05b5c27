"""Whether the other hosts still answer, as the kernel counts it on the connections between ranks.

A network that is cut ends no connection: TCP sends again for a quarter of an hour, and a rank that only waits sends
nothing. So the kernel is told to ask, and its own account is looked at: how long nothing has come from there, and how
often it has asked or sent again since. Kernels answer for ranks that compute, hang or are stopped.

Source: tcp(7); `struct tcp_info` of linux/tcp.h.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import psutil

SILENCE_S = 28.0
"""Longer than launchers need that hear of hosts themselves: they know more of what went wrong. And past the last
question that can be had in half a minute: where a round trip takes few ms, a kernel that sends again does so up to 13 s
and 26 to 27 s after the first time, as its timers are coarse."""
_LOOK_S = 1.0
_ASK_S = 3
_ASKED = 30
"""Questions until the kernel ends the connection itself."""
_UNANSWERED = 2
_TCP_INFO = struct.Struct("=8B13I")
_STATE, _RETRANSMITS, _PROBES, _LAST_DATA_MS, _LAST_ACK_MS = 0, 2, 3, 19, 20
_ESTABLISHED = 1
_NO_CONNECTION = re.compile(r"timed out connecting: SO_ERROR: (.+?), remote=\[(.+?)\]")


def unreached(told: str) -> str | None:
    """What gloo says of a host that no connection came about to, in our words; None of all else, and of this host."""
    match = _NO_CONNECTION.search(told)
    if match is None or match[2].startswith(("127.", "::1")):
        return None
    return f"host `{match[2]}` has not answered: {match[1]}"


class Wire(NamedTuple):
    """A connection to another host, which belongs to who made it."""

    address: str
    descriptor: int
    inode: int
    """Another one where the descriptor has become another file's."""

    def ask(self) -> None:
        """Let the kernel ask for a sign of life where nothing is sent."""
        options = ((socket.TCP_KEEPIDLE, _ASK_S), (socket.TCP_KEEPINTVL, _ASK_S), (socket.TCP_KEEPCNT, _ASKED))
        one = socket.socket(fileno=self.descriptor)
        try:
            for option, value in options:
                one.setsockopt(socket.IPPROTO_TCP, option, value)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        finally:
            one.detach()

    def silent_s(self) -> float:
        """How long the other host has owed an answer; 0 where it does not, and of a connection that is closed."""
        with contextlib.suppress(OSError):
            if os.fstat(self.descriptor).st_ino != self.inode:
                return 0.0
            one = socket.socket(fileno=self.descriptor)
            try:
                told = one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            finally:
                one.detach()
            return _owed_s(told)
        return 0.0


def _owed_s(told: bytes) -> float:
    fields = _TCP_INFO.unpack(told)
    # A host that has no room for more is asked ever more seldom, and answers each time.
    unanswered = max(fields[_RETRANSMITS], fields[_PROBES]) >= _UNANSWERED
    owed = unanswered and fields[_STATE] == _ESTABLISHED
    # Data that acknowledge nothing new are told in their own field only, and leave the questions counted.
    return min(fields[_LAST_DATA_MS], fields[_LAST_ACK_MS]) / 1000 if owed else 0.0


def wires() -> list[Wire]:
    """One connection of this process to each other host that it has any to; none where they cannot be listed."""
    try:
        connections = psutil.Process().net_connections("tcp")
    except (OSError, RuntimeError, psutil.Error):
        return []
    found: dict[str, Wire] = {}
    for one in connections:
        if one.status == psutil.CONN_ESTABLISHED and one.raddr.ip != one.laddr.ip and one.raddr.ip not in found:
            with contextlib.suppress(OSError):
                found[one.raddr.ip] = Wire(one.raddr.ip, one.fd, os.fstat(one.fd).st_ino)
    return list(found.values())


def watch(hosts: Iterable[Wire], lost: Callable[[str], None]) -> None:
    """From now on look whether hosts answer; `lost` hears, on another thread, the address of the first that does not.

    Call it when the ranks are together. A connection whose kernel cannot be told to ask is not looked at.
    """
    asked = []
    for wire in hosts:
        with contextlib.suppress(OSError):
            wire.ask()
            asked.append(wire)
    threading.Thread(target=_look, args=(asked, lost), name="reach", daemon=True).start()


def _look(hosts: Iterable[Wire], lost: Callable[[str], None]) -> None:
    while True:
        time.sleep(_LOOK_S)
        for wire in hosts:
            if wire.silent_s() >= SILENCE_S:
                lost(wire.address)
                return
