"""What could be run: devices that can be had, and every configuration of them that a global batch allows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitscale.cost.device_memory import DeviceNeed
from vitscale.cost.models import ViTShape
from vitscale.cost.scaling import Layout
from vitscale.errors import UsageError
from vitscale.hardware import catalog
from vitscale.predict.memory import rank_need

CPU = "cpu"
ENGINES: tuple[tuple[str, int | None], ...] = (
    ("ddp", None),
    ("deepspeed", 0),
    ("deepspeed", 1),
    ("deepspeed", 2),
    ("deepspeed", 3),
    ("fsdp", None),
)
"""Engines and ZeRO stages, the simpler first."""

BOARDS_PER_NODE = 8
"""Assumed of PCIe boards: as many as a usual server takes."""

_MOST_SHARES = 8  # micro-batches of a rank's share: the whole, a half, ... a 128th
_POOL = re.compile(r"^(?P<name>[a-z0-9][a-z0-9.-]*?)x(?P<count>[0-9]{1,7})(?:@(?P<price>[0-9]+(?:\.[0-9]+)?))?$")


@dataclass(frozen=True)
class Pool:
    """Devices of one kind that can be had."""

    device: str
    """Short name of the catalog, or `cpu`."""
    count: int
    price_per_hour: float | None
    """Of one device; None where it is not told."""
    memory_bytes: int | None
    seen_per_node: int | None = None
    """Ranks of the fullest node where runs on several nodes were measured."""

    @property
    def per_node(self) -> int:
        """Devices of a node: as measured, else of the maker's usual server, else `BOARDS_PER_NODE`."""
        if self.seen_per_node is not None:
            return self.seen_per_node
        return self.count if self.device == CPU else catalog.device(self.device).devices_per_node or BOARDS_PER_NODE

    @property
    def assumption(self) -> str | None:
        """What is assumed of its nodes, where it fills several that nothing tells."""
        known = self.seen_per_node or self.device == CPU or catalog.device(self.device).devices_per_node
        if known or self.count <= self.per_node:
            return None
        return f"{self.per_node} {self.device} on a node: the catalog has no server of it; their network is a prior's"


@dataclass(frozen=True)
class Way:
    """Engine, ZeRO stage and precision."""

    engine: str
    zero_stage: int | None
    precision: str

    def __str__(self) -> str:
        stage = "" if self.zero_stage is None else f" ZeRO-{self.zero_stage}"
        return f"{self.engine}{stage}, {self.precision}"


@dataclass(frozen=True)
class Candidate:
    """One configuration."""

    pool: Pool
    way: Way
    layout: Layout

    def __str__(self) -> str:
        at = self.layout
        return f"{at.world_size} x {self.pool.device}, {self.way}, micro-batch {at.micro_batch:g} x {at.grad_accum}"

    @property
    def complexity(self) -> tuple[int, int, int, int]:
        """Sorts the simpler first: fewer ranks, full precision, the simpler engine, less accumulation."""
        order = ENGINES.index((self.way.engine, self.way.zero_stage)) if self._known else len(ENGINES)
        return (self.layout.world_size, int(self.way.precision != "fp32"), order, self.layout.grad_accum)

    @property
    def _known(self) -> bool:
        return (self.way.engine, self.way.zero_stage) in ENGINES


def pools(text: str, price_per_hour: float | None, memory_bytes: int | None) -> tuple[Pool, ...]:
    """Read `a100x8,t4x32@0.35`: a device of the catalog, how many at most, and the price of one for an hour.

    A name that begins several of the catalog (`a100`) is the one with the least memory.

    Raises:
        UsageError: not of that form, or a device without figures.
    """
    found = []
    for word in text.lower().replace(" ", "").split(","):
        parts = _POOL.match(word)
        if parts is None or int(parts["count"]) < 1:
            raise UsageError(
                f"`--devices` has {word!r}", "NAMExCOUNT, with a price per hour if known: a100x8@1.5,t4x32"
            )
        device = _device(parts["name"])
        price = float(parts["price"]) if parts["price"] else price_per_hour
        found.append(Pool(device.name, int(parts["count"]), price, memory_bytes or device.memory_bytes))
    return tuple(found)


def _device(name: str) -> catalog.DeviceSpec:
    begun = [catalog.device(one) for one in catalog.names() if one.startswith(f"{name}-")]
    if name not in catalog.names() and begun:
        return min(begun, key=lambda one: one.memory_bytes)
    return catalog.device(name)


def ways(pool: Pool) -> tuple[Way, ...]:
    """Every engine and stage, in fp32 and in the 16 bits that the device computes fast."""
    peaks = catalog.device(pool.device).peak_flop_per_s
    half = next((one for one in ("bf16", "fp16") if one in peaks), None)
    precisions = [one for one in ("fp32", half) if one in peaks]
    return tuple(Way(engine, stage, str(one)) for one in precisions for engine, stage in ENGINES)


def enumerate_candidates(pool: Pool, of: Sequence[Way], global_batch: int) -> Iterator[Candidate]:
    """Powers of two of ranks and all of them, and of each rank's share the whole, a half, a quarter, ..."""
    for size in _sizes(pool.count):
        nodes = -(-size // pool.per_node)
        if global_batch % size or size % nodes:
            continue
        share = global_batch // size
        for accum in (2**power for power in range(_MOST_SHARES)):
            if share % accum == 0:
                layout = Layout(size, nodes, share // accum, accum)
                yield from (Candidate(pool, way, layout) for way in of)


def _sizes(most: int) -> list[int]:
    return sorted({2**power for power in range(most.bit_length()) if 2**power <= most} | {most})


def needed(one: Candidate, shape: ViTShape, optimizer: str, knobs: Mapping[str, Any]) -> DeviceNeed:
    """Memory of one rank of a candidate, with knobs as `cost.calibrated.knobs_of` names them."""
    way, device = one.way, CPU if one.pool.device == CPU else "cuda"
    engine: Mapping[str, Any] = {"engine": way.engine, "zero_stage": way.zero_stage, "precision": way.precision}
    return rank_need(shape, one.layout, **engine, optimizer=optimizer, device=device, knobs=knobs)[1]
