"""What links give by their own rate: that which the launcher `lab` shapes, or the data sheet of a known GPU."""

from __future__ import annotations

from typing import NamedTuple

from vitscale.config.runspec import RunSpec
from vitscale.cost.collectives import bus_factor
from vitscale.hardware import catalog
from vitscale.records.links import LinkBenchmark, Timing
from vitscale.study.plan import PAYLOAD_SHARE

SLOW_SHARE = 0.7
"""Below this share of what is expected, or of the best pair, a link is called slow. Sound ones reach 0.8 and more."""


class Expected(NamedTuple):
    """A rate, and whose it is."""

    bytes_per_s: float
    whose: str


def between_hosts(run: RunSpec, gpu: str | None, ranks: int = 1) -> Expected | None:
    """What the network of one host gives so many of its ranks together; None where nothing is known.

    Args:
        run: any of the world.
        gpu: name of a GPU, None on CPUs.
        ranks: those of a host that talk.
    """
    if run.link_bytes_per_s is not None:
        return Expected(PAYLOAD_SHARE * run.link_bytes_per_s, f"link = {run.link}")
    device = catalog.match(gpu) if gpu else None
    link = device.links(ranks).inter_node if device else None
    return None if link is None else Expected(link.bytes_per_s, link.name)


def inside_host(gpu: str | None) -> Expected | None:
    """What one rank's link to another of its host gives; None where nothing is known."""
    device = catalog.match(gpu) if gpu else None
    link = device.intra_node if device else None
    return None if link is None else Expected(link.bytes_per_s, link.name)


def of_ring(run: RunSpec, gpu: str | None) -> Expected | None:
    """Bus bandwidth of all ranks together: a ring is as fast as the slowest of the links that it goes over."""
    found = [inside_host(gpu)] if run.ranks_per_node > 1 else []
    if run.nodes > 1:
        network = between_hosts(run, gpu, run.ranks_per_node)
        if network is None:
            return None
        found.append(network)
    known = [one for one in found if one is not None]
    return min(known, default=None, key=lambda one: one.bytes_per_s)


class AllReduce(NamedTuple):
    """The largest all-reduce of a round beside what its links are expected to give it."""

    timing: Timing
    expected: Expected | None

    @property
    def share(self) -> float | None:
        """Of the bus bandwidth that is expected."""
        return None if self.expected is None else self.timing.bus_bytes_per_s / self.expected.bytes_per_s

    @property
    def slow(self) -> bool:
        """Whether it is far from what is expected."""
        return self.share is not None and self.share < SLOW_SHARE


def all_reduce(run: RunSpec, gpu: str | None, links: LinkBenchmark) -> AllReduce | None:
    """The largest all-reduce; None where there was no time for one.

    What is expected of it takes in the time of an all-reduce of one element, which no link's rate changes.
    """
    timings = [one for one in links.timings if one.operation == "all_reduce"]
    if not timings:
        return None
    largest, ring = max(timings, key=lambda one: one.bytes), of_ring(run, gpu)
    if ring is None:
        return AllReduce(largest, None)
    sent_bytes = largest.bytes * bus_factor(largest.operation, links.world_size)
    rate = sent_bytes / (links.latency_s + sent_bytes / ring.bytes_per_s)
    return AllReduce(largest, Expected(rate, ring.whose))
