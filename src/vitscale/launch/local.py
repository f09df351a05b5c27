"""Ranks on this host: one process each, watched by heartbeats, ended as a whole.

Every rank leads a session of its own and holds our end of a pipe as standard input: when this process is gone, however
it went, the pipe closes and the rank ends itself and its children.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

from vitscale.hardware.position import Position
from vitscale.launch.attend import attend
from vitscale.launch.inputs import Inputs, allowed
from vitscale.launch.outcome import RoundEnd, Watch
from vitscale.launch.processes import Command, Ranks
from vitscale.records.round import ROUND, Round

LOOPBACK = "lo"
_INTERFACES = ("GLOO_SOCKET_IFNAME", "TP_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


class Place(NamedTuple):
    """Where a rank is started."""

    prefix: tuple[str, ...]
    """What its command begins with."""
    interface: str | None
    """Network interface by which it reaches the others; None is found by gloo and NCCL."""


class Local:
    """Launcher for one host."""

    def __init__(self, inputs: Inputs) -> None:
        self._limits = inputs.limits
        self._environ = allowed(inputs.environ) | inputs.variables()

    def run(self, results: Path, round_: Round, watch: Watch) -> RoundEnd:
        """Serve a round."""
        folder = results / "rounds" / round_.name
        commands = (self.command(folder, round_, rank) for rank in range(round_.world_size))
        several = range(round_.world_size) if round_.nodes > 1 else ()
        hosts = [f"host {rank // round_.ranks_per_node}" for rank in several]
        return attend(Ranks(hosts), commands, results, round_, self._limits, watch)

    def place(self, node: int) -> Place:
        """Where ranks of a node are started."""
        assert node == 0
        return Place((), LOOPBACK)

    def command(self, folder: Path, round_: Round, rank: int) -> Command:
        """What is started for a rank."""
        node, local_rank = divmod(rank, round_.ranks_per_node)
        place = self.place(node)
        own = Position(rank, local_rank, round_.world_size, round_.ranks_per_node, "vitscale").variables()
        environ = self._environ | of_the_round(folder, round_, place.interface) | own
        return Command([*place.prefix, *worker(round_)], environ)


def of_the_round(folder: Path, round_: Round, interface: str | None) -> dict[str, str]:
    """Environment of a rank that is the round's; without an interface, gloo and NCCL choose it."""
    own = {"VITSCALE_STORE": str((folder / "store").resolve())}
    own |= dict.fromkeys(_INTERFACES, interface) if interface else {}
    threads = round_.entries[0].spec.get("threads_per_rank")
    return own | ({"OMP_NUM_THREADS": str(threads)} if threads else {})


def worker(round_: Round) -> list[str]:
    """Command of a rank; it works in the results folder."""
    # -P: the results folder is not searched for modules.
    return [sys.executable, "-P", "-m", "vitscale.worker", f"rounds/{round_.name}/{ROUND}"]
