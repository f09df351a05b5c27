"""Before anything is timed: hosts say what they are, all ranks are waited for, and then they have a minute to talk.

Hosts and ranks find one another by the file that they meet at, so that what differs is told where no network works.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vitscale.config.study import Backend
from vitscale.errors import HangError, SetupError, VitscaleError, WorkerError
from vitscale.hardware.interfaces import astray, chosen, listening
from vitscale.hardware.position import Position
from vitscale.hardware.probe import Machine
from vitscale.records.examination import Interface, different_versions
from vitscale.records.round import LISTENS, Round
from vitscale.records.writer import write_json
from vitscale.worker.devices import versions
from vitscale.worker.distributed import Ranks, Store, connect, gathered, open_store

MEET_S = 60.0
"""Longest time from the coming of the last rank to the end of an all-reduce of one element."""


def join(
    round_: Round,
    place: Position,
    backend: Backend,
    machine: Machine,
    environ: Mapping[str, str],
    late: Callable[[VitscaleError], None],
) -> Ranks:
    """Meet the other ranks of a round. In a round that examines, hosts that differ meet nevertheless.

    Args:
        round_: what is to be done.
        place: this rank's.
        backend: what the ranks talk through.
        machine: this host.
        environ: this rank's environment.
        late: hears, on another thread, that ranks which are all there did not get to talk, and ends this rank.

    Raises:
        SetupError: hosts differ in their versions, or one is reached by no other.
        WorkerError: no way from one host to another.
    """
    store, reached = open_store(place.world_size), ""
    if store is not None:
        if round_.nodes > 1:
            found = versions(machine) if place.local_rank == 0 else {}
            reached, problem = introduce(store, place, found, backend, environ)
            if problem and not round_.examine:
                raise problem
        arrive(store, place.world_size)
    variable = "NCCL_SOCKET_IFNAME" if backend == "nccl" else "GLOO_SOCKET_IFNAME"
    hint = f"set {variable} to the interface that joins the hosts, and let them through each other's firewall"
    try:
        with limited(MEET_S, lambda: late(HangError(f"ranks did not talk within {MEET_S:g} s{reached}", hint))):
            return connect(round_.device, backend, store)
    except RuntimeError as error:
        if round_.nodes == 1 or "onnect" not in str(error):
            raise
        first = str(error).splitlines()[0][:200]
        raise WorkerError(f"the hosts do not reach one another{reached}: {first}", hint) from error


def introduce(
    store: Store, place: Position, versions: Mapping[str, str], backend: str, environ: Mapping[str, str]
) -> tuple[str, SetupError | None]:
    """Tell the other hosts what this one is, and hear what they are.

    Args:
        store: what the ranks meet at.
        place: this rank's. The first of a host speaks for it.
        versions: of what decides speed and results.
        backend: what the ranks talk through.
        environ: this rank's environment.

    Returns:
        By which interface each host is reached, to be said where one is not; and why they must not be measured
        together, or None.
    """
    if place.local_rank == 0:
        own = {"versions": dict(versions), "interface": chosen(backend, environ).model_dump(mode="json")}
        store.set(f"host{place.node}", json.dumps(own))
    if place.rank == 0:
        nodes = place.world_size // place.local_world_size
        hosts = [json.loads(store.get(f"host{node}")) for node in range(nodes)]
        store.set("hosts", json.dumps([_reached(hosts), *(_problem(hosts) or (None, None))]))
    reached, message, hint = json.loads(store.get("hosts"))
    return reached, None if message is None else SetupError(message, hint)


_MOST_NAMED = 8


def _reached(hosts: Sequence[dict[str, Any]]) -> str:
    by = [f"host {node} by `{one['interface']['name']}`" for node, one in enumerate(hosts)]
    return f"; reached are {', '.join(by[:_MOST_NAMED])}{' …' if len(by) > _MOST_NAMED else ''}"


def _problem(hosts: Sequence[dict[str, Any]]) -> tuple[str, str] | None:
    if found := different_versions((node, one["versions"]) for node, one in enumerate(hosts)):
        return f"hosts differ: {found}", "one environment for all hosts, or the same versions in each"
    interfaces = [Interface.model_validate(one["interface"]) for one in hosts]
    for node in astray(interfaces):
        return (
            f"host {node} is reached by `lo`, which is itself: {interfaces[node].why}",
            "GLOO_SOCKET_IFNAME=<interface>, NCCL_SOCKET_IFNAME=<interface>; `ip -brief address` lists them",
        )
    return None


def write_listening(folder: Path, ranks: Ranks) -> None:
    """Leave in a round's folder where the ranks of each host listen. All ranks call it, once they are together."""
    told = gathered({"listens": listening()}, ranks)
    if ranks.rank == 0:
        by_host = [told[first : first + ranks.ranks_per_node] for first in range(0, len(told), ranks.ranks_per_node)]
        hosts = [sorted({one for rank in host for one in rank["listens"]}) for host in by_host]
        write_json(folder / LISTENS, {"hosts": hosts})


def arrive(store: Store, world_size: int) -> None:
    """Wait for all ranks; the last one tells the others."""
    if store.add("here", 1) == world_size:
        store.set("all", "here")
    store.get("all")


@contextlib.contextmanager
def limited(limit_s: float, late: Callable[[], None]) -> Iterator[None]:
    """Call `late` on another thread where what is inside is not done in time: it may hang in a library."""
    timer = threading.Timer(limit_s, late)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
