"""What the runs of a study are planned for: this machine, hosts laid out on it, or a device of the catalog."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitscale.errors import Infeasible, SetupError
from vitscale.hardware import catalog
from vitscale.hardware.probe import Machine
from vitscale.hardware.topology import Topology, layout


@dataclass(frozen=True)
class Where:
    """What the runs are planned for."""

    machine: Machine
    simulated: str | None = None
    """Catalog name of the device to simulate, or None for this machine."""
    lab: bool = False
    """Whether the launcher `lab` lays out several hosts on this machine."""

    def device(self, asked: str) -> Literal["cpu", "cuda"]:
        """Resolve the `device` axis.

        Raises:
            SetupError: CUDA is asked for and there is none, or none that the launcher can share out.
        """
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
        if self.simulated is not None and nodes is None and ranks_per_node is None:
            per_node = catalog.device(self.simulated).devices_per_node
            fits = per_node is None or world_size < per_node
            return layout(world_size, None, None if fits else per_node)
        spread = layout(world_size, nodes, ranks_per_node)
        if self.simulated is None and not self.lab and spread.nodes > 1:
            hint = "nodes=1" if ranks_per_node is None else f"ranks_per_node={world_size}"
            hint += "" if self.machine.gpus else ", or --launcher lab"
            raise Infeasible(f"`nodes = {spread.nodes}`: the local launcher starts ranks on this host only", hint)
        return spread
