"""What a prediction says: quantiles, what limits, where more stops paying."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np

from vitscale.cost.scaling import Array, Layout

_LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)

MATERIAL = 0.05
"""Share of a step from which something is said to limit it."""

MEMORY = ("memory_bytes", "memory_needed_bytes", "memory_limit_bytes", "fit_probability")
"""Names of the fields of `Memory` in JSON, in their order."""


@dataclass(frozen=True)
class Quantiles:
    """Median with its 80 and 95 % intervals, of what one further launch would measure."""

    median: float
    low80: float
    high80: float
    low95: float
    high95: float

    @property
    def half_width(self) -> float:
        """Half of the 95 % interval over the median."""
        return (self.high95 - self.low95) / 2 / self.median


@dataclass(frozen=True)
class Parameter:
    """One fitted parameter."""

    median: float
    low95: float
    high95: float


@dataclass(frozen=True)
class Loss:
    """Shares of the step at the medians of the parameters: what limits."""

    small_batch: float
    """The part of compute that a larger micro-batch would not have."""
    update: float
    communication: float
    waiting: float
    input: float
    """Reading, copying and preparing images, as far as a step waits for it."""

    @property
    def limit(self) -> str:
        """The dearest of them, in words; `compute` where each takes less than `MATERIAL` of the step."""
        dearest = max((one.name for one in fields(self)), key=lambda name: float(getattr(self, name)))
        return dearest.replace("_", " ") if getattr(self, dearest) >= MATERIAL else "compute"


@dataclass(frozen=True)
class Memory:
    """What one rank takes, and whether it is there."""

    tensors_bytes: int
    """All tensors at the peak of a step by the closed forms: a lower bound."""
    needed_bytes: Quantiles
    """With workspace, the allocator's slack and context."""
    limit_bytes: int | None
    """Of the device; None where the catalog does not have it."""
    fit_probability: float | None
    """None without a limit."""


@dataclass(frozen=True)
class Spending:
    """What a world size takes; None is not known, see `Prediction.reasons`."""

    energy_per_step_j: Quantiles | None
    """Of all devices."""
    energy_per_image_j: Quantiles | None
    cost_per_million_images: Quantiles | None
    """In the currency of the price."""
    cost_per_epoch: Quantiles | None
    training_s: Quantiles | None
    """All epochs, with checkpoints as often as Daly has it and the failures of so many devices (`cost.failures`)."""
    energy_is_bound: bool
    """Whether energy is what it is at most: that of boards at their limit."""


@dataclass(frozen=True)
class Point:
    """One world size."""

    layout: Layout
    step_s: Quantiles
    images_per_s: Quantiles | None
    """None where the micro-batch is not told."""
    speedup: Quantiles
    efficiency: Quantiles
    memory: Memory | None
    """None where the model is no timm ViT, or a form is not known: `Prediction.reasons` has which."""
    spending: Spending
    losses: Loss
    assumptions: tuple[str, ...]

    @property
    def rate(self) -> float:
        """Images per second at the median step; of an untold micro-batch micro-batches, which compare alike."""
        return self.layout.global_batch / self.step_s.median


@dataclass(frozen=True)
class Prediction:
    """All asked world sizes of one series."""

    series: str
    method: str
    asked: dict[str, str | int]
    """What differs from the series, by key; empty: its own configuration."""
    points: tuple[Point, ...]
    baseline: int
    """World size that speed-up and efficiency refer to."""
    knee: int | None
    """World size at which time and cost per image, multiplied, are least (`analysis.costs`); None with one point."""
    pays: int | None
    """Largest world size that gains, over the next smaller one, half of what its further ranks would at best."""
    reasons: dict[str, str]
    """Why a figure is None in all points, by its name."""
    assumptions: tuple[str, ...]


def quantiles(values: Array) -> Quantiles:
    """Of draws."""
    low95, low80, median, high80, high95 = (float(one) for one in np.quantile(values, _LEVELS))
    return Quantiles(median, low80, high80, low95, high95)


def parameter(values: Array) -> Parameter:
    """Of draws."""
    low, median, high = (float(one) for one in np.quantile(values, (0.025, 0.5, 0.975)))
    return Parameter(median, low, high)


def knee(points: tuple[Point, ...]) -> int | None:
    """World size at which time and cost per image, multiplied, are least; None with one point."""
    if len(points) < 2:
        return None
    return min(points, key=lambda one: one.layout.world_size / one.rate**2).layout.world_size


def pays(points: tuple[Point, ...]) -> int | None:
    """Largest world size that pays for itself, see `Prediction.pays`."""
    found = None
    for before, after in pairwise(points):
        gain = after.rate / before.rate - 1
        if gain < 0.5 * (after.layout.world_size / before.layout.world_size - 1):
            break
        found = after.layout.world_size
    return found
