"""`launch.hostfile`: the hosts that ranks are started on, in DeepSpeed's format: `name slots=4`, one host a line.

DeepSpeed trains on this host alone where the file is missing, and takes `slots=4junk` for 4; both are refused here.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from vitscale.config.texts import read_text
from vitscale.errors import SetupError, UsageError

_LINE = re.compile(r"(?P<name>\S+)\s+slots=(?P<slots>[1-9][0-9]{0,4})")
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_NAME = re.compile(rf"{_LABEL}(\.{_LABEL})*")  # RFC 1123
_FORM = "one host a line: `name slots=4`"


class Host(NamedTuple):
    """A machine that ranks can be started on."""

    name: str
    slots: int
    """The most ranks on it."""


def read_hostfile(path: Path) -> tuple[Host, ...]:
    """Read the hosts in order.

    Raises:
        SetupError: the file cannot be read, or has no host.
        UsageError: a line is not a host, or names one again; with its number.
    """
    try:
        text = read_text(path.expanduser())
    except (RuntimeError, ValueError) as error:
        raise SetupError(f"cannot read `launch.hostfile` = `{path}`: {error}", f"a file with {_FORM}") from None
    hosts: dict[str, Host] = {}
    for number, line in _lines(text):
        host = _host(number, line)
        if host.name.lower() in hosts:
            raise UsageError(f"line {number} of the hostfile names `{host.name}` again", "one line for each host")
        hosts[host.name.lower()] = host
    if not hosts:
        raise SetupError(f"`launch.hostfile` = `{path}` names no host", _FORM)
    return tuple(hosts.values())


def chosen(hosts: Sequence[Host], nodes: int, ranks_per_node: int) -> tuple[Host, ...] | None:
    """The first hosts with room for as many ranks each, or None where there are too few."""
    roomy = [host for host in hosts if host.slots >= ranks_per_node]
    return tuple(roomy[:nodes]) if len(roomy) >= nodes else None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is neither empty nor a comment. Only a line feed ends one."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            yield number, line.strip(" \t\r")


def _host(number: int, line: str) -> Host:
    match = _LINE.fullmatch(line)
    if match is None or not _is_name(match["name"]):
        raise UsageError(f"line {number} of the hostfile is not a host: {line[:80]!r}", _FORM)
    return Host(match["name"], int(match["slots"]))


def _is_name(name: str) -> bool:
    """Whether a starter takes it for a host and for nothing else: no option, no list, nothing of a shell."""
    try:
        return ipaddress.ip_address(name).version == 4  # mpirun's `host:slots` has no room for the colons of version 6
    except ValueError:
        return len(name) <= 253 and _NAME.fullmatch(name) is not None
