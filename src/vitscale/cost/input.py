"""What waiting for images makes of a step: closed forms over what runs measured.

1. A rank that reads on demand waits w seconds for each image, whatever computes: step = busy + A · b · w.
2. A rank that reads ahead waits only where reading takes longer than all the rest. Then the step is as long as its
   images take to read, r seconds each, which neither a faster device nor network shortens: step = max(busy, A · b · r).
   r is at most the least seconds an image of any run took, since its reader kept up with that.
3. Both are those of the runs with the nearest number of ranks on a node, which share its cores and disks; at another
   number they are as unsure as it is far. Nodes read each for itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, median, pstdev
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitscale.cost.scaling import Layout

_LOG_SD = 0.1
"""Least log standard deviation of w and r."""


class Reading(NamedTuple):
    """What one run says of reading."""

    ranks_per_node: float
    wait_s: float
    """Of a rank, for each of its images."""
    step_s: float
    """Of the step, for each image of a rank."""


def reads_ahead(knobs: Mapping[str, Any], *, on_cpu: bool) -> bool:
    """Whether ranks read micro-batches ahead: as `engine.loader_threads` has it, by default on CUDA only."""
    return bool(knobs.get("loader_threads", 0 if on_cpu else 1))


@dataclass(frozen=True)
class Input:
    """What the runs of a series say of reading; without readings steps stay as they are."""

    readings: tuple[Reading, ...]
    ahead: bool

    def total_s(self, busy_s: NDArray[np.float64], layout: Layout, z: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds of a step with its wait for images, from those without it; `z` is standard normal, 0 the median."""
        if not self.readings:
            return busy_s
        near, apart = self._nearest(layout)
        waits = [one.wait_s for one in near]
        if self.ahead:
            seconds, spread = min(one.step_s for one in near), 0.0
        else:
            seconds, spread = median(waits), pstdev(waits) / (fmean(waits) or 1.0)
        log_sd = math.hypot(max(_LOG_SD, spread), apart)
        images_s = layout.micro_batch * layout.grad_accum * seconds * np.exp(log_sd * z)
        total: NDArray[np.float64] = np.maximum(busy_s, images_s) if self.ahead else busy_s + images_s
        return total

    def assumptions(self, layout: Layout) -> tuple[str, ...]:
        """What is taken as known of a layout's nodes."""
        if not self.readings or self._nearest(layout)[1] == 0:
            return ()
        near = self._nearest(layout)[0][0].ranks_per_node
        per_node = layout.world_size / layout.nodes
        return (f"{per_node:g} ranks of a node read images, {near:g} did where it was measured: the wait is less sure",)

    def _nearest(self, layout: Layout) -> tuple[list[Reading], float]:
        """The readings at the nearest number of ranks on a node, and how far that is, as a logarithm."""
        per_node = layout.world_size / layout.nodes
        apart = [abs(math.log(per_node / one.ranks_per_node)) for one in self.readings]
        least = min(apart)
        return [one for one, far in zip(self.readings, apart, strict=True) if far == least], least
