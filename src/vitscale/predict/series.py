"""What a prediction starts from: the runs of one series, whoever measured them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vitscale.cost.input import Input, Reading
from vitscale.cost.scaling import Layout
from vitscale.units import ranks

SIZES = ("img_size", "patch_size", "depth", "embed_dim", "num_heads")
"""Sizes of a model beside its name, as timm calls them."""

UNTOLD_BATCH = "the micro-batch is not told, so that images are not"
"""Why what counts images is not told."""


@dataclass(frozen=True)
class Observation:
    """One run: how it was laid out, and what was seen of it."""

    layout: Layout
    step_s: float | None
    """Median step of the slowest rank; None is a layout of which nothing was measured."""
    launches: int = 1
    spread: float | None = None
    """Standard error of ln `step_s` over its launches; None where they are too few to tell."""
    compute_s: float | None = None
    """Forward and backward of a step, without communication."""
    comm_s: float | None = None
    """Communication that nothing hides and waiting for other ranks, together."""
    memory_bytes: int | None = None
    power_w: float | None = None
    """Of all its devices, over the steady window."""
    images_per_epoch: int | None = None
    """Over all ranks."""
    input_s: float | None = None
    """What the mean rank took for its images beside computing; None: not told, or small in all steps of the folder."""

    @property
    def busy_s(self) -> float | None:
        """The step without what it took for its images, where that is told."""
        return None if self.step_s is None else self.step_s - (self.input_s or 0.0)


@dataclass(frozen=True)
class LinkRates:
    """What the links gave on their own, or are shaped to, in bytes per second and direction; None is not known."""

    intra_node: float | None = None
    """Of one rank, by the bus bandwidth of an all-reduce."""
    inter_node: float | None = None
    """Of one node."""


@dataclass(frozen=True)
class Series:
    """Runs equal in everything but world size, nodes and what the batch identity solves from them."""

    name: str
    observations: tuple[Observation, ...]
    """By world size."""
    protocol: str | None = None
    model: str | None = None
    img_size: int | None = None
    patch_size: int | None = None
    depth: int | None = None
    embed_dim: int | None = None
    num_heads: int | None = None
    device: str | None = None
    engine: str | None = None
    zero_stage: int | None = None
    precision: str | None = None
    optimizer: str | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)
    """Of the study's `[engine]` those that are on, and what else `cost.calibrated.knobs_of` names."""
    images_per_epoch: int | None = None
    epochs: float | None = None
    """That the study trains; None where it does not, or that is not told."""
    links: LinkRates = LinkRates()
    batch_told: bool = True
    """False where no micro-batch is told: then equal work of a rank is a guess."""
    baseline: Layout | None = None
    """What the report of a results folder compares with; None: the smallest world size."""
    price_per_hour: float | None = None
    """Of one device, as the study tells it."""
    source: str = "imported"
    remarks: tuple[str, ...] = field(default=())
    """What was noticed in reading it, in words; each is an assumption of the prediction."""

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the model that are told beside its name."""
        told = {name: getattr(self, name) for name in SIZES}
        return {name: value for name, value in told.items() if value is not None}

    @property
    def measured(self) -> tuple[Observation, ...]:
        """Observations with a step time."""
        return tuple(one for one in self.observations if one.step_s is not None)

    @property
    def input(self) -> Input:
        """What its runs took for their images, where that is told."""
        told = ((one.layout, one.input_s) for one in self.measured if one.input_s is not None)
        return Input(tuple(Reading(at.world_size / at.nodes, s / (at.micro_batch * at.grad_accum)) for at, s in told))

    def first(self, count: int) -> Series:
        """The series as if only its `count` smallest world sizes had been measured."""
        sizes = sorted({one.layout.world_size for one in self.observations})[:count]
        kept = tuple(one for one in self.observations if one.layout.world_size in sizes)
        return Series(**{**self.__dict__, "observations": kept})


def place(layout: Layout) -> str:
    """Ranks and nodes in words: `4 ranks on 1 node`."""
    return f"{ranks(layout.world_size)} on {layout.nodes:,} node{'s' * (layout.nodes != 1)}"


_NO_CHANGE = ("price_per_hour", "epochs")


@dataclass(frozen=True)
class Asked:
    """What is asked beyond the series itself; None stays as it is."""

    protocol: str | None = None
    micro_batch: int | None = None
    grad_accum: int | None = None
    global_batch: int | None = None
    engine: str | None = None
    zero_stage: int | None = None
    precision: str | None = None
    device: str | None = None
    """Short name of the catalog."""
    link: str | None = None
    """Bits per second between nodes as `tc` writes them: 100mbit, 25gbit."""
    price_per_hour: float | None = None
    """Of one device: no other configuration."""
    epochs: float | None = None
    """Of the training: no other configuration either."""

    @property
    def batch(self) -> bool:
        """Whether the batch differs."""
        return any(one is not None for one in (self.protocol, self.micro_batch, self.grad_accum, self.global_batch))

    @property
    def told(self) -> dict[str, str | int]:
        """What differs, by key."""
        return {key: value for key, value in self.__dict__.items() if value is not None and key not in _NO_CHANGE}

    @property
    def any(self) -> bool:
        """Whether anything differs."""
        return bool(self.told)
