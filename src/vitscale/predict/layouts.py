"""The layout of an asked world size: what the series' protocol keeps stays, the rest is solved."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

from vitscale.cost.scaling import Layout
from vitscale.errors import UsageError
from vitscale.predict.priors import find_device
from vitscale.predict.series import Asked, Series


def layout_of(series: Series, asked: Asked, world_size: int, ranks_per_node: int | None) -> Layout:
    """The series' member of that world size, measured or not.

    Raises:
        UsageError: batches that are asked and cannot be, or a global batch that leaves ranks without an image.
    """
    per_node = ranks_per_node or _fullest(series, world_size)
    nodes = max(1, -(-world_size // per_node))
    largest = _largest(series)
    own = [one.layout for one in series.observations]
    same = [one for one in own if (one.world_size, one.nodes) == (world_size, nodes)]
    if same and not asked.batch:
        return min(same, key=lambda one: not _alike(one, largest))
    total = _total(series, asked, largest)
    at = Layout(
        world_size, nodes, float(asked.micro_batch or largest.micro_batch), asked.grad_accum or largest.grad_accum
    )
    return at if total is None else _shared(series, asked, at, total)


def possible(series: Series, asked: Asked, sizes: Iterable[int], ranks_per_node: int | None) -> list[Layout]:
    """The layouts of those world sizes that the asked batch can be shared among."""
    found = []
    for size in sizes:
        try:
            found.append(layout_of(series, asked, size, ranks_per_node))
        except UsageError:
            continue
    return found


def baseline_of(series: Series) -> Layout:
    """What speed-up refers to: the report's baseline, else the smallest measured world size, on fewest nodes.

    Of several batches at that world size it is the one of the largest world size, which the asked layouts have too.
    """
    own = [one.layout for one in series.measured or series.observations]
    if series.baseline in own:
        return series.baseline
    largest = _largest(series)
    return min(own, key=lambda one: (one.world_size, not _alike(one, largest), one.nodes))


def _largest(series: Series) -> Layout:
    return max((one.layout for one in series.observations), key=lambda one: one.world_size)


def _alike(one: Layout, other: Layout) -> bool:
    """Equal work of a rank, as in weak scaling, or an equal global batch, as in strong."""
    work = (one.micro_batch, one.grad_accum) == (other.micro_batch, other.grad_accum)
    return work or math.isclose(one.global_batch, other.global_batch)


def _total(series: Series, asked: Asked, largest: Layout) -> float | None:
    """The global batch that all world sizes share; None where each rank keeps its work."""
    if not series.batch_told:
        if asked.micro_batch or asked.global_batch or asked.protocol == "strong":
            raise UsageError(
                f"series `{series.name}` does not tell its micro-batch: no other batch can be told from it",
                "add the column `micro_batch` or `global_batch`",
            )
        return None
    if asked.global_batch:
        if asked.protocol not in (None, "strong"):
            raise UsageError(
                f"`global_batch` is one for all world sizes, and protocol={asked.protocol} grows it with them",
                "leave one of them out, or give `micro_batch`",
            )
        return float(asked.global_batch)
    both = asked.micro_batch and asked.grad_accum and asked.protocol is None
    return largest.global_batch if (asked.protocol or series.protocol) == "strong" and not both else None


def _shared(series: Series, asked: Asked, at: Layout, total: float) -> Layout:
    """Accumulation gives way where the series varies it or is not of one global batch, else the micro-batch."""
    share = total / at.world_size
    accums = {one.layout.grad_accum for one in series.observations}
    gives_way = len(accums) > 1 or series.protocol != "strong"
    if asked.grad_accum:
        accum = asked.grad_accum
    elif asked.micro_batch or gives_way:
        accum = max(1, round(share / at.micro_batch))
    else:
        (accum,) = accums
    micro = share / accum
    if micro < 1:
        each = f"{accum} micro-steps of {at.world_size:,} ranks" if accum > 1 else f"{at.world_size:,} ranks"
        raise UsageError(
            f"a global batch of {total:g} leaves {each} without an image each",
            "ask for fewer ranks, a larger `global_batch`, a smaller `grad_accum`, or protocol=weak",
        )
    if asked.micro_batch and not math.isclose(micro, asked.micro_batch):
        raise UsageError(
            f"a global batch of {total:g} is not {at.world_size:,} ranks times micro_batch={asked.micro_batch} times "
            + (f"grad_accum={accum}" if asked.grad_accum else "a whole number of micro-steps"),
            f"global_batch={at.world_size * accum * asked.micro_batch}, or leave `micro_batch` out",
        )
    return replace(at, micro_batch=micro, grad_accum=accum)


def _fullest(series: Series, world_size: int) -> int:
    """Ranks on a node: the series' fullest, or where one node held all, the device's usual server."""
    seen = max(math.ceil(one.layout.world_size / one.layout.nodes) for one in series.observations)
    if any(one.layout.nodes > 1 for one in series.observations) or world_size <= seen:
        return seen
    device = find_device(series.device)
    return max(seen, device.devices_per_node or seen) if device else seen
