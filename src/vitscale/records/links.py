"""`links.json`: what the ranks' links gave when nothing else used them, timed as a process start began.

Rates are nccl-tests': algorithm bandwidth is a collective's size over its time, bus bandwidth is what crossed each
rank's link in that time if the collective was done in its bandwidth-optimal form.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, ValidationError

from vitscale.records.schema import SCHEMA_VERSION, Frozen, Positive

LINKS = "links.json"


class Timing(Frozen):
    """One collective over all ranks, again and again, in fp32."""

    operation: str
    """`all_reduce`, `all_gather`, `reduce_scatter`, `broadcast`; `all_to_all` where runs share the tokens of images."""
    bytes: int
    """Its size: what is reduced or broadcast, the gathered result, or what a rank sends to all."""
    times_s: tuple[Positive, ...]
    """Of each call after the first, by the slowest rank, seconds."""
    algorithm_bytes_per_s: Positive
    """Size over the median time."""
    bus_bytes_per_s: Positive
    """Algorithm bandwidth times the bus factor, so that it can be held against the link's rate. Two ranks on gloo reach
    all of it with all-reduce and broadcast, two thirds with all-gather, and half with reduce-scatter, for which gloo
    reduces all to all."""


class LinkBenchmark(Frozen):
    """The links of one process start."""

    schema_version: int = SCHEMA_VERSION
    """Version of this format."""
    world_size: int
    """Ranks in all."""
    nodes: int
    """Hosts."""
    backend: str
    """`nccl` or `gloo`."""
    link: str | None
    """What the launcher `lab` shaped the link of each host to; null is not shaped."""
    device: str | None = None
    """GPU of rank 0, by name; null on CPUs, and in records of earlier versions."""
    latency_s: Positive
    """Median time of an all-reduce of one element, by the slowest rank, seconds."""
    timings: tuple[Timing, ...]
    """Sizes are those of the round's own collectives, by the closed form."""
    left_out: int = Field(ge=0)
    """Timings for which the time set aside was too short."""


def read_links(folder: Path) -> LinkBenchmark | None:
    """What the links of a round gave; None where they were not timed, or not yet."""
    try:
        return LinkBenchmark.model_validate_json((folder / LINKS).read_bytes())
    except (OSError, ValidationError):
        return None
