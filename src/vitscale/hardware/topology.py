"""Where ranks go: nodes, ranks of a node, and the cores of a rank on a CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vitscale.errors import Infeasible

_CPUS = Path("/sys/devices/system/cpu")


@dataclass(frozen=True)
class Topology:
    """Equal nodes, ranks numbered node by node as torchrun does."""

    nodes: int
    ranks_per_node: int

    @property
    def world_size(self) -> int:
        """Ranks in all."""
        return self.nodes * self.ranks_per_node

    def node(self, rank: int) -> int:
        """Return the node of a rank."""
        return rank // self.ranks_per_node

    def local_rank(self, rank: int) -> int:
        """Return a rank's number on its node."""
        return rank % self.ranks_per_node


def layout(world_size: int, nodes: int | None = None, ranks_per_node: int | None = None) -> Topology:
    """Return the topology of `world_size` ranks; what is not given is solved, one node if neither is.

    Raises:
        Infeasible: the ranks do not spread evenly, or the product is another world size.
    """
    given = {"nodes": nodes, "ranks_per_node": ranks_per_node}
    if nodes is None:
        nodes = world_size // ranks_per_node if ranks_per_node else 1
    if ranks_per_node is None:
        ranks_per_node = world_size // nodes if nodes else 0
    if nodes < 1 or ranks_per_node < 1 or nodes * ranks_per_node != world_size:
        asked = " and ".join(f"`{key} = {value}`" for key, value in given.items() if value is not None)
        raise Infeasible(
            f"`world_size = {world_size}` does not spread evenly with {asked}",
            "give a world size that spreads evenly over the nodes",
        )
    return Topology(nodes, ranks_per_node)


def cpu_shares(max_world_size: int, cores: Sequence[int]) -> int:
    """Return the threads of one rank: the same at every world size of a study, what its largest leaves to each rank.

    Args:
        max_world_size: the most ranks that will share this machine.
        cores: cores this process may use, `probe().cores`.
    """
    return max(1, len(cores) // max_world_size)


def oversubscribed(ranks: int, threads: int, cores: Sequence[int]) -> bool:
    """Say whether the ranks need more cores than there are, so that their times are not valid."""
    return ranks * threads > len(cores)


def core_sets(
    ranks: int, threads: int, cores: Sequence[int], siblings: Sequence[Sequence[int]] | None = None
) -> list[tuple[int, ...]] | None:
    """Return the cores of each rank, disjoint, or None (no affinity) if there are too few.

    Each rank gets physical cores of its own while they last. If hyper-threads are needed, siblings stay in one rank
    where its size allows, so that ranks do not share a physical core.

    Args:
        ranks: ranks on this machine.
        threads: threads of each.
        cores: cores this process may use.
        siblings: groups of cores that are one physical core, `sibling_groups(cores)`; None takes every core as one.
    """
    if oversubscribed(ranks, threads, cores):
        return None
    groups = [tuple(group) for group in siblings] if siblings is not None else [(core,) for core in cores]
    first = [group[0] for group in groups]
    order = first if len(first) >= ranks * threads else [core for group in groups for core in group]
    return [tuple(sorted(order[rank * threads : (rank + 1) * threads])) for rank in range(ranks)]


def sibling_groups(cores: Sequence[int], cpus: Path = _CPUS) -> list[tuple[int, ...]]:
    """Return the allowed cores grouped by physical core, as /sys tells; a core it does not tell of stays alone."""
    groups: list[tuple[int, ...]] = []
    seen: set[int] = set()
    allowed = set(cores)
    for core in cores:
        if core in seen:
            continue
        path = cpus / f"cpu{core}" / "topology" / "thread_siblings_list"
        together = _parse_list(path.read_text()) if path.is_file() else (core,)
        group = tuple(sorted({core, *together} & allowed - seen))
        seen.update(group)
        groups.append(group)
    return groups


def _parse_list(text: str) -> tuple[int, ...]:
    """Parse the kernel's list format: `0-2,8`."""
    found: list[int] = []
    for part in text.strip().split(","):
        low, _, high = part.partition("-")
        found.extend(range(int(low), int(high or low) + 1))
    return tuple(found)
