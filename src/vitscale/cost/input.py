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
        factor = np.exp(math.hypot(self.log_sd(layout), log_sd) * z)
        images = layout.micro_batch * layout.grad_accum
        total: NDArray[np.float64] = busy_s + images * self._image_s(layout) * factor
        return total

    def log_sd(self, layout: Layout) -> float:
        """Log standard deviation of w at a layout; 0 without readings."""
        if not self.readings:
            return 0.0
        near, apart = self._nearest(layout)
        images_s = [one.image_s for one in near]
        return math.hypot(max(_LOG_SD, pstdev(images_s) / (fmean(images_s) or 1.0)), apart)

    def measured_at(self, layout: Layout) -> Input:
        """As if one more run, of that layout, had taken what is expected of it; without readings nothing is."""
        more = (Reading(layout.world_size / layout.nodes, self._image_s(layout)),) if self.readings else ()
        return Input((*self.readings, *more))

    def assumptions(self, layout: Layout) -> tuple[str, ...]:
        """What is taken as known of a layout's nodes."""
        if not self.readings or self._nearest(layout)[1] == 0:
            return ()
        near = " and ".join(f"{ranks:g}" for ranks in sorted({one.ranks_per_node for one in self._nearest(layout)[0]}))
        per_node = layout.world_size / layout.nodes
        return (f"images: {per_node:g} ranks of a node read them, {near} did where it was measured; less sure",)

    def _image_s(self, layout: Layout) -> float:
        return median(one.image_s for one in self._nearest(layout)[0])

    def _nearest(self, layout: Layout) -> tuple[list[Reading], float]:
        """The readings at the nearest number of ranks on a node, and how far that is, as a logarithm."""
        per_node = layout.world_size / layout.nodes
        apart = [abs(math.log(per_node / one.ranks_per_node)) for one in self.readings]
        least = min(apart)
        return [one for one, far in zip(self.readings, apart, strict=True) if far == least], least
