"""The layout of an asked world size: what the series' protocol keeps stays, the rest is solved."""

from __future__ import annotations

import math
from dataclasses import replace

from vitscale.cost.scaling import Layout
from vitscale.errors import UsageError
from vitscale.predict.priors import find_device
from vitscale.predict.series import Asked, Series


def layout_of(series: Series, asked: Asked, world_size: int, ranks_per_node: int | None) -> Layout:
    """The series' member of that world size, measured or not.

    Raises:
        UsageError: a strong series whose global batch leaves ranks without an image.
    """
    per_node = ranks_per_node or _fullest(series, world_size)
    nodes = max(1, -(-world_size // per_node))
    same = next((one.layout for one in series.observations if one.layout.world_size == world_size), None)
    if same is not None and not asked.batch and same.nodes == nodes:
        return same
    largest = max((one.layout for one in series.observations), key=lambda one: one.world_size)
    micro = float(asked.micro_batch or largest.micro_batch)
    protocol = asked.protocol or series.protocol
    if protocol != "strong" or (asked.micro_batch and asked.grad_accum):
        return Layout(world_size, nodes, micro, asked.grad_accum or largest.grad_accum)
    total = asked.global_batch or largest.global_batch
    return _strong(series, asked, Layout(world_size, nodes, micro, 1), total)


def _strong(series: Series, asked: Asked, at: Layout, total: float) -> Layout:
    """Equal global batch: accumulation gives way where the series varies it, else the micro-batch."""
    if total < at.world_size:
        raise UsageError(
            f"a global batch of {total:g} leaves {at.world_size:,} ranks without an image each",
            "ask for fewer ranks, a larger `global_batch`, or protocol=weak",
        )
    share = total / at.world_size
    accums = {one.layout.grad_accum for one in series.observations}
    if asked.grad_accum:
        return replace(at, micro_batch=share / asked.grad_accum, grad_accum=asked.grad_accum)
    if (len(accums) > 1 or asked.micro_batch) and share >= at.micro_batch:
        accum = max(1, round(share / at.micro_batch))
        return replace(at, micro_batch=share / accum, grad_accum=accum)
    accum = 1 if len(accums) > 1 else next(iter(accums))
    return replace(at, micro_batch=share / accum, grad_accum=accum)


def _fullest(series: Series, world_size: int) -> int:
    """Ranks on a node: the series' fullest, or where one node held all, the device's usual server."""
    seen = max(math.ceil(one.layout.world_size / one.layout.nodes) for one in series.observations)
    if any(one.layout.nodes > 1 for one in series.observations) or world_size <= seen:
        return seen
    device = find_device(series.device)
    return max(seen, device.devices_per_node or seen) if device else seen
