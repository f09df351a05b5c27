"""Medians and intervals across launches: numbers in, numbers out. A leaf; both sides may import it.

The unit of replication is a fresh launch, so samples are small: 3 is usual, 10 is many. How the 95 % interval is made
follows from that:

1. One launch has no interval.
2. 2 to 5 launches: Student's t on the logarithms. Times are positive and their noise multiplies; the interval is
   centred on the mean of the logarithms, the reported point is the median, and the interval is widened to hold it.
3. From 6 launches on: a bootstrap-t of the median, exp(log median ± t * s), where s is the standard deviation of the
   log median over resamples and t has n - 1 degrees of freedom. The plain percentile bootstrap covers 87 % at 7
   launches and 90 % at 15 (measured: `tests/unit/test_statistics.py` repeats it for this method, which stays within
   90 to 99 % at 3 to 15 launches, heavy tails included).

Everything is deterministic (fixed seed) and does not depend on the order of the launches.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

BOOTSTRAP_FROM = 6
RESAMPLES = 2000
OUTLIER_Z = 3.5
"""Iglewicz & Hoaglin, How to Detect and Handle Outliers (ASQC 1993): flag a modified z-score above 3.5."""

_LEVEL = 0.95


class Estimate(NamedTuple):
    """A median with its 95 % interval; `low` and `high` are None where one launch allows none."""

    median: float
    low: float | None = None
    high: float | None = None


class _HasInterval(Protocol):
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


def interval(values: Sequence[float], seed: int = 0) -> Estimate:
    """Median of positive values, one per launch, with its 95 % interval.

    Raises:
        ValueError: no value, or one that is not positive and finite.
    """
    logs = _logs(values)
    median = median_of(values)
    if len(logs) == 1:
        return Estimate(median)
    if len(logs) < BOOTSTRAP_FROM:
        return _around(median, float(logs.mean()), _t(len(logs) - 1) * float(logs.std(ddof=1)) / math.sqrt(len(logs)))
    spread = float(_resampled_medians(logs, np.random.default_rng(seed)).std(ddof=1))
    return _around(median, math.log(median), _t(len(logs) - 1) * spread)


def ratio_interval(numerators: Sequence[float], denominators: Sequence[float], seed: int = 0) -> Estimate:
    """Ratio of two medians with its 95 % interval, both sides' noise counted.

    Below 6 launches on either side Welch's t on the difference of the mean logarithms; from 6 on both sides are
    resampled together, with Welch and Satterthwaite's degrees of freedom. A baseline's ratio to itself is exactly 1 and
    is the caller's to state: two samples of equal values are not the same sample.

    Raises:
        ValueError: no value, or one that is not positive and finite.
    """
    above, below = _logs(numerators), _logs(denominators)
    ratio = median_of(numerators) / median_of(denominators)
    fewest = min(len(above), len(below))
    if fewest == 1:
        return Estimate(ratio)
    if fewest < BOOTSTRAP_FROM:
        centre = float(above.mean() - below.mean())
        variances = float(above.var(ddof=1)) / len(above), float(below.var(ddof=1)) / len(below)
    else:
        rng = np.random.default_rng(seed)
        centre = math.log(ratio)
        variances = float(_resampled_medians(above, rng).var(ddof=1)), float(_resampled_medians(below, rng).var(ddof=1))
    freedom = _welch(variances, (len(above), len(below)))
    return _around(ratio, centre, _t(freedom) * math.sqrt(sum(variances)))


def difference_interval(values: Sequence[float], references: Sequence[float] = ()) -> Estimate:
    """Difference of two medians, or without references a median, with its 95 % interval: values of any sign.

    Welch's t on the values as they are, since a difference may be 0 or less; the interval is centred on the difference
    of the means and widened to hold that of the medians.

    Raises:
        ValueError: no value, or one that is not finite.
    """
    sides = [np.asarray(side, dtype=np.float64) for side in (values, references) if len(side)]
    if not len(values) or not all(np.isfinite(side).all() for side in sides):
        raise ValueError(f"an interval needs finite values, not {list(values)} and {list(references)}")
    difference = float(np.median(sides[0])) - sum(float(np.median(side)) for side in sides[1:])
    if min(len(side) for side in sides) == 1:
        return Estimate(difference)
    centre = float(sides[0].mean()) - sum(float(side.mean()) for side in sides[1:])
    variances = [float(side.var(ddof=1)) / len(side) for side in sides]
    counts = [len(side) for side in sides]
    freedom = _welch((variances[0], variances[1]), (counts[0], counts[1])) if len(sides) > 1 else counts[0] - 1
    half = _t(freedom) * math.sqrt(sum(variances))
    return Estimate(difference, min(difference, centre - half), max(difference, centre + half))


def median_of(values: Sequence[float]) -> float:
    """Plain median; the mean of the middle two where their number is even."""
    return float(np.median(np.asarray(values, dtype=np.float64)))


def modified_z(values: Sequence[float]) -> list[float]:
    """Modified z-scores 0.6745 * (x - median) / MAD (Iglewicz & Hoaglin 1993); above 3.5 in size is an outlier.

    Fewer than 3 values, or a median absolute deviation of 0, tell nothing: all scores are 0.
    """
    data = np.asarray(values, dtype=np.float64)
    if len(data) < 3:
        return [0.0] * len(data)
    deviations = data - np.median(data)
    mad = float(np.median(np.abs(deviations)))
    return [0.0] * len(data) if mad == 0 else [float(z) for z in 0.6745 * deviations / mad]


def differ(a: _HasInterval, b: _HasInterval) -> bool:
    """Whether two intervals do not overlap. Without an interval on both sides nothing can be told: False."""
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return False
    return a.high < b.low or b.high < a.low


def _logs(values: Sequence[float]) -> NDArray[np.float64]:
    """Sorted logarithms: sorting makes every result independent of the order of the launches, to the last bit."""
    data = np.sort(np.asarray(values, dtype=np.float64))
    if not len(data) or not np.isfinite(data).all() or data[0] <= 0:
        raise ValueError(f"an interval needs positive finite values, not {list(values)}")
    logs: NDArray[np.float64] = np.log(data)
    return logs


def _resampled_medians(logs: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    medians: NDArray[np.float64] = np.median(logs[rng.integers(0, len(logs), (RESAMPLES, len(logs)))], axis=1)
    return medians


def _welch(variances: tuple[float, float], counts: tuple[int, int]) -> float:
    """Welch and Satterthwaite's degrees of freedom of a sum of two variances of means."""
    total = sum(variances)
    if total == 0:
        return float(sum(counts) - 2)
    # Shares of the total instead of squares of variances: nothing underflows.
    return 1 / sum((variance / total) ** 2 / (count - 1) for variance, count in zip(variances, counts, strict=True))


def _t(freedom: float) -> float:
    """Two-sided 95 % quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + _LEVEL) / 2))


def _around(median: float, centre: float, half_width: float) -> Estimate:
    """exp(centre ± half width), widened to hold the median."""
    return Estimate(median, min(median, math.exp(centre - half_width)), max(median, math.exp(centre + half_width)))
