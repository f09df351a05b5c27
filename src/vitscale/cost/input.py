"""What a step takes for its images beside computing with them: closed forms over what runs measured.

1. A rank takes w seconds for each of its images, to read, copy and prepare it as far as the step waits for that:
   step = busy + A · b · w.
2. w is the median of the runs with the nearest number of ranks on a node, which share its cores and disks; at another
   number it is as unsure as it is far. Nodes read each for itself.
3. w stays as it is whatever computes, between two ends that records do not tell apart: what the device itself prepares
   becomes faster with it, and for what is read ahead a faster device waits longer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, median, pstdev
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vitscale.cost.scaling import Layout

_LOG_SD = 0.1
"""Least log standard deviation of w."""


class Reading(NamedTuple):
    """What one run took for its images."""

    ranks_per_node: float
    image_s: float
    """Of a rank, for each of its images."""


@dataclass(frozen=True)
class Input:
    """What the runs of a series took for their images; without readings steps stay as they are."""

    readings: tuple[Reading, ...]

    def total_s(
        self, busy_s: NDArray[np.float64], layout: Layout, z: NDArray[np.float64], log_sd: float = 0.0
    ) -> NDArray[np.float64]:
        """Seconds of a step with its images, from those without.

        Args:
            busy_s: the step without.
            layout: ranks and their images.
            z: standard normal values, as many; 0 is the median.
            log_sd: further log standard deviation of w.
        """
        if not self.readings:
            return busy_s
        near, apart = self._nearest(layout)
        images_s = [one.image_s for one in near]
        own = max(_LOG_SD, pstdev(images_s) / (fmean(images_s) or 1.0))
        factor = np.exp(math.hypot(own, apart, log_sd) * z)
        total: NDArray[np.float64] = busy_s + layout.micro_batch * layout.grad_accum * median(images_s) * factor
        return total

    def assumptions(self, layout: Layout) -> tuple[str, ...]:
        """What is taken as known of a layout's nodes."""
        if not self.readings or self._nearest(layout)[1] == 0:
            return ()
        near = self._nearest(layout)[0][0].ranks_per_node
        per_node = layout.world_size / layout.nodes
        return (f"images: {per_node:g} ranks of a node read them, {near:g} did where it was measured; less sure",)

    def _nearest(self, layout: Layout) -> tuple[list[Reading], float]:
        """The readings at the nearest number of ranks on a node, and how far that is, as a logarithm."""
        per_node = layout.world_size / layout.nodes
        apart = [abs(math.log(per_node / one.ranks_per_node)) for one in self.readings]
        least = min(apart)
        return [one for one, far in zip(self.readings, apart, strict=True) if far == least], least
