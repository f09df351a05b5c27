"""What the runs of a study are planned for: this machine, hosts laid out on it, or a device of the catalog."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from vitscale.errors import Infeasible, SetupError
from vitscale.hardware import catalog
from vitscale.hardware.probe import Machine
from vitscale.hardware.topology import Topology, layout
from vitscale.launch.hostfile import Host, chosen


@dataclass(frozen=True)
class Where:
    """What the runs are planned for."""

    machine: Machine
    simulated: str | None = None
    """Catalog name of the device to simulate, `cpu` for the CPU of a calibration, or None for this machine."""
    lab: bool = False
    """Whether the launcher `lab` lays out several hosts on this machine."""
    elsewhere: bool = False
    """Whether ranks are laid out by a starter outside, by the launcher `env`: over as many hosts as the study says."""
    hosts: tuple[Host, ...] = ()
    """Hosts of the launchers `hosts`, `mpi` and `slurm`, each taken to be like `machine`; none is this machine."""
    calibrated_per_node: int | None = None
    """Ranks on the fullest node of the calibration whose CPU is simulated."""

    def device(self, asked: str) -> Literal["cpu", "cuda"]:
        """Resolve the `device` axis.

        Raises:
            SetupError: CUDA is asked for and there is none, or none that the launcher can share out.
        """
        if self.simulated == catalog.CPU:
            if asked == "cuda":
                raise SetupError("`device = cuda`, but the calibration is of a CPU", "device=cpu, or hardware.name=…")
            return "cpu"
        if self.simulated is not None:
            return "cuda"
        if self.lab:
            if asked == "cuda":
                raise SetupError("`device = cuda`: the launcher `lab` shares out cores, no GPUs", "device=cpu")
            return "cpu"
        if asked == "cuda" and not self.machine.gpus:
            raise SetupError(f"`device = cuda`, but there is no GPU: {self.machine.gpus_reason}", "device=cpu")
        return "cuda" if asked == "cuda" or (asked == "auto" and self.machine.gpus) else "cpu"

    def topology(self, world_size: int, nodes: int | None, ranks_per_node: int | None = None) -> Topology:
        """Spread the ranks.

        Raises:
            Infeasible: they do not spread evenly, or over more hosts than the launcher reaches.
        """
        if self.hosts:
            return self._over_hosts(world_size, nodes, ranks_per_node)
        if self.simulated is not None and nodes is None and ranks_per_node is None:
            on_cpu = self.simulated == catalog.CPU
            per_node = self.calibrated_per_node if on_cpu else catalog.device(self.simulated).devices_per_node
            fits = per_node is None or world_size < per_node
            return layout(world_size, None, None if fits else per_node)
        spread = layout(world_size, nodes, ranks_per_node)
        if self.simulated is None and not self.lab and not self.elsewhere and spread.nodes > 1:
            here = "nodes=1" if ranks_per_node is None else f"ranks_per_node={world_size}"
            others = "slurm" if self.machine.gpus else "slurm or lab"
            hint = f"{here}; on several hosts: --launcher hosts or mpi with launch.hostfile, or --launcher {others}"
            raise Infeasible(f"`nodes = {spread.nodes}`: ranks are started on this host only", hint)
        return spread

    def _over_hosts(self, world_size: int, nodes: int | None, ranks_per_node: int | None) -> Topology:
        if nodes is None and ranks_per_node is None:
            even = (layout(world_size, count) for count in range(1, world_size + 1) if world_size % count == 0)
            fewest = next((one for one in even if chosen(self.hosts, one.nodes, one.ranks_per_node)), None)
            spread = fewest or layout(world_size, 1)
        else:
            spread = layout(world_size, nodes, ranks_per_node)
        if chosen(self.hosts, spread.nodes, spread.ranks_per_node) is None:
            slots = ", ".join(str(host.slots) for host in self.hosts[:8]) + ("…" if len(self.hosts) > 8 else "")
            on = "one host" if spread.nodes == 1 else f"each of {spread.nodes} hosts"
            raise Infeasible(
                f"{spread.ranks_per_node} ranks on {on}: those there are have {slots} slots",
                "more hosts or slots in launch.hostfile, another launch.partition, or a smaller world",
            )
        return spread

    def sharing(self, topology: Topology) -> int:
        """Ranks that share the cores and the memory of one machine."""
        return topology.ranks_per_node if self.hosts or self.elsewhere else topology.world_size

    def most_sharing(self, world_size: int, nodes: Sequence[int | None], ranks_per_node: Sequence[int | None]) -> int:
        """The most ranks of a world that may do so, over any of these numbers of hosts and of ranks on each."""
        if self.hosts:
            return min(world_size, max(host.slots for host in self.hosts))
        most = 0
        for count, each in itertools.product(nodes, ranks_per_node) if self.elsewhere else ():
            with contextlib.suppress(Infeasible):
                most = max(most, layout(world_size, count, each).ranks_per_node)
        return most or world_size
