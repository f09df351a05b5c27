"""How long the fastest ranks wait for the slowest one."""

from __future__ import annotations

import math
from functools import cache


def expected_maximum(ranks: int, sigma: float) -> float:
    """Return the expected largest of `ranks` independent Gaussian deviations from their mean.

    1. The largest of N has the distribution Φ(x)^N, and the density N·φ(x)·Φ(x)^(N-1).
    2. Its mean for sigma 1, by the trapezoid rule on [-9, 9]; it scales with sigma. N = 2: 1/sqrt(pi) = 0.564.
    """
    return sigma * _standard_maximum(ranks)


@cache
def _standard_maximum(ranks: int, points: int = 3600) -> float:
    if ranks <= 1:
        return 0.0
    width = 18 / points
    total = 0.0
    for index in range(points + 1):
        x = -9 + index * width
        below = 0.5 * math.erfc(-x / math.sqrt(2))
        density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        total += x * ranks * density * below ** (ranks - 1)
    return total * width
