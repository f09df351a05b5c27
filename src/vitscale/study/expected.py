"""What links give by their own rate: that which the launcher `lab` shapes, or the data sheet of a known GPU."""

from __future__ import annotations

from typing import NamedTuple

from vitscale.config.runspec import RunSpec
from vitscale.cost.collectives import bus_factor
from vitscale.hardware import catalog
from vitscale.records.links import LinkBenchmark, Timing
from vitscale.study.plan import LOOPBACK, PAYLOAD_SHARE
from vitscale.units import decimal

SLOW_SHARE = 0.7
"""Below this share of a shaped link's rate, or of the best pair, a link is called slow. Sound links of the lab reach
0.9 (docs/guides/lab.md). Of a data sheet's rate sound GPUs reach less where a message is small: eight A100 of 300 GB/s
have 120 with 16 MB, 147 with 33 MB and 197 with 134 MB (nccl-tests). Such a rate judges nothing."""


class Expected(NamedTuple):
    """A rate, and whose it is."""

    bytes_per_s: float
    whose: str
    judges: bool = False
    """Whether a link that stays far below it is at fault."""

    @property
    def text(self) -> str:
        """In words."""
        return f"{decimal(self.bytes_per_s, 'B/s')} {'expected' if self.judges else 'at best'} ({self.whose})"


def between_hosts(run: RunSpec, gpu: str | None, ranks: int = 1) -> Expected | None:
    """What the network of one host gives so many of its ranks together; None where nothing is known.

    Args:
        run: any of the world.
        gpu: name of a GPU, None on CPUs.
        ranks: those of a host that talk.
    """
    if run.link_bytes_per_s is not None:
        shaped = PAYLOAD_SHARE * run.link_bytes_per_s
        if shaped > LOOPBACK.bytes_per_s:
            return Expected(LOOPBACK.bytes_per_s, f"hosts of one machine, link = {run.link}")
        return Expected(shaped, f"link = {run.link}", judges=True)
    device = catalog.match(gpu) if gpu else None
    link = device.links(ranks).inter_node if device else None
    return None if link is None or link.assumed else Expected(link.bytes_per_s, link.name)


def inside_host(gpu: str | None) -> Expected | None:
    """What any pair of ranks of one host has at best; None where that is not known, or pairs are joined unlike.

    One pair has all of a rank's link over a switch only: of a mesh a part, of PCIe by where the two are plugged in.
    """
    device = catalog.match(gpu) if gpu else None
    link = device.intra_node if device else None
    return Expected(link.bytes_per_s, link.name) if link and link.switched else None


def of_ring(run: RunSpec, gpu: str | None) -> Expected | None:
    """Bus bandwidth of all ranks together: a ring is as fast as the slowest of the links that it goes over."""
    device = catalog.match(gpu) if gpu else None
    inside = device.intra_node if device and run.ranks_per_node > 1 else None
    known = [Expected(inside.bytes_per_s, inside.name)] if inside else []
    if run.nodes > 1:
        network = between_hosts(run, gpu, run.ranks_per_node)
        if network is None:
            return None
        known.append(network)
    return min(known, default=None, key=lambda one: one.bytes_per_s)


class AllReduce(NamedTuple):
    """The largest all-reduce of a round beside what its links give."""

    timing: Timing
    expected: Expected | None

    @property
    def share(self) -> float | None:
        """Of that bus bandwidth."""
        return None if self.expected is None else self.timing.bus_bytes_per_s / self.expected.bytes_per_s

    @property
    def slow(self) -> bool:
        """Whether it is far from what is expected of a link whose rate is sure."""
        return self.expected is not None and self.expected.judges and (self.share or 0.0) < SLOW_SHARE


def all_reduce(run: RunSpec, gpu: str | None, links: LinkBenchmark) -> AllReduce | None:
    """The largest all-reduce; None where there was no time for one.

    What is expected over a shaped link takes in the time of an all-reduce of one element, which no link's rate changes.
    """
    timings = [one for one in links.timings if one.operation == "all_reduce"]
    if not timings:
        return None
    largest, ring = max(timings, key=lambda one: one.bytes), of_ring(run, gpu)
    if ring is None or not ring.judges:
        return AllReduce(largest, ring)
    sent_bytes = largest.bytes * bus_factor(largest.operation, links.world_size)
    rate = sent_bytes / (links.latency_s + sent_bytes / ring.bytes_per_s)
    return AllReduce(largest, ring._replace(bytes_per_s=rate))
