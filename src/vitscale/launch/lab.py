"""A cluster on one machine: each host of a study is a network namespace, joined to a switch by a link of a given rate.

The switch is a namespace too: nothing of the lab is in the machine's own network, and it is gone with its namespaces.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from vitscale.config.study import rate_bytes_per_s
from vitscale.errors import SetupError
from vitscale.launch.local import Local, Place
from vitscale.launch.outcome import RoundEnd, Watch
from vitscale.launch.processes import undisturbed
from vitscale.records.round import Round

NAMESPACES = Path("/run/netns")  # where iproute2 keeps them
_INTERFACE = "eth0"
_BUCKET_BYTES, _BUCKET_S = 8192, 0.65e-3
_HOSTS = ipaddress.ip_network("10.0.0.0/16")
_NAME = re.compile(r"vitscale-(\d+)-(?:host\d+|switch)")
_SUDO = 'sudo "$(command -v vitscale)" with the same words: sudo does not know your PATH'
_HINT = "it needs CAP_SYS_ADMIN and CAP_NET_ADMIN, and a kernel with veth, bridge and sch_tbf"


class Lab(Local):
    """Launcher for several hosts that are namespaces of this one. Ranks of a single host are started as by `Local`."""

    _hosts: Sequence[str] = ()

    def run(self, results: Path, round_: Round, watch: Watch) -> RoundEnd:
        """Serve a round.

        Raises:
            SetupError: the kernel refuses namespaces or links.
        """
        if round_.nodes == 1:
            self._hosts = ()
            return super().run(results, round_, watch)
        with network(round_.nodes, round_.link) as self._hosts:
            return super().run(results, round_.model_copy(update={"one_machine": True}), watch)

    def place(self, node: int) -> Place:
        """Where ranks of a node are started."""
        if not self._hosts:
            return super().place(node)
        # Not by `ip netns exec`, which mounts another /sys, without the control groups.
        return Place(("nsenter", f"--net={NAMESPACES / self._hosts[node]}", "--"), _INTERFACE)


def require_namespaces() -> None:
    """Look for what `network` needs.

    Raises:
        SetupError: not root, or no tools.
    """
    if os.geteuid() != 0:
        raise SetupError("the launcher `lab` makes network namespaces, which only root may", _SUDO)
    if missing := [name for name in ("ip", "tc", "nsenter") if shutil.which(name) is None]:
        named = ", ".join(f"`{name}`" for name in missing)
        raise SetupError(f"the launcher `lab` needs {named}, not found", "apt-get install iproute2 util-linux")


@contextlib.contextmanager
def network(hosts: int, rate: str | None) -> Iterator[list[str]]:
    """Hosts that reach one another over a switch; the names of their namespaces.

    Args:
        hosts: how many.
        rate: of each host's link in either direction, as `tc` writes it; None is not shaped.

    Raises:
        SetupError: the kernel refuses.
    """
    remove_leftovers()
    own = f"vitscale-{os.getpid()}"
    switch, names = f"{own}-switch", [f"{own}-host{number}" for number in range(hosts)]
    try:
        _ip("netns", "add", switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        for number, name in enumerate(names):
            _connect(name, switch, number, rate)
        yield names
    finally:
        with undisturbed():
            _remove([*names, switch])


def _connect(name: str, switch: str, number: int, rate: str | None) -> None:
    """Make a host and its link."""
    port, address = f"port{number}", f"{_HOSTS[number + 1]}/{_HOSTS.prefixlen}"
    _ip("netns", "add", name)
    _ip("-n", name, "link", "add", _INTERFACE, "type", "veth", "peer", "name", port, "netns", switch)
    _ip("-n", name, "address", "add", address, "dev", _INTERFACE)
    _ip("-n", switch, "link", "set", port, "master", "bridge")
    for namespace, interface in ((name, "lo"), (name, _INTERFACE), (switch, port)):
        if rate is not None and interface != "lo":
            shape = ("tbf", "rate", rate, "burst", str(_bucket_bytes(rate)), "latency", "100ms")
            _run("tc", "-n", namespace, "qdisc", "replace", "dev", interface, "root", *shape)
        _ip("-n", namespace, "link", "set", interface, "up")


def _bucket_bytes(rate: str) -> int:
    """The token bucket. It fills while ranks compute, and what it holds then travels at no cost; but a timer that is
    later than the bucket is deep slows the link: at 1 Gbit/s, 8 KiB gave a third of the rate on a busy machine."""
    return max(_BUCKET_BYTES, round(_BUCKET_S * rate_bytes_per_s(rate)))


def remove_leftovers() -> None:
    """Take away what a process left that was killed: namespaces named for a process that is gone."""
    names = [path.name for path in NAMESPACES.iterdir()] if NAMESPACES.is_dir() else []
    found = [(name, int(match[1])) for name in names if (match := _NAME.fullmatch(name))]
    _remove([name for name, pid in found if pid == os.getpid() or not psutil.pid_exists(pid)])


def _remove(names: list[str]) -> None:
    """Their interfaces go with them."""
    for name in names:
        if (NAMESPACES / name).exists():
            _ip("netns", "delete", name)


def _ip(*words: str) -> None:
    _run("ip", *words)


def _run(*command: str) -> None:
    # A session of its own: Ctrl-C in the terminal ends no command in the middle of a lab's removal.
    done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"status {done.returncode}"]
        raise SetupError(f"the launcher `lab`: `{' '.join(command)}`: {said[0]}", _HINT)
