"""How right predictions are: errors, coverage of intervals, and skill against two baselines that need no model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from vitscale.errors import UsageError
from vitscale.predict.model import Quantiles, calibrate, predict_layouts
from vitscale.predict.series import Observation, Series

_FEWEST_SERIES = 3
"""Fewer say nothing of how series differ."""


@dataclass(frozen=True)
class Scored:
    """One measured point that was hidden, and what was said of it."""

    table: str
    series: str
    fitted: int
    """World sizes that were shown."""
    largest: int
    """The largest of them."""
    world_size: int
    seen_s: float
    said: Quantiles
    """Of the step, seconds."""
    linear_s: float
    """Perfect linear scaling from the smallest shown world size."""
    same_s: float
    """The step time of the largest shown world size, for the same work of a rank."""

    @property
    def error(self) -> float:
        """Predicted over measured step, minus 1."""
        return self.said.median / self.seen_s - 1

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return {**asdict(self), "error": self.error}


@dataclass(frozen=True)
class Summary:
    """Of some scored points. Errors are fractions, absolute."""

    points: int
    median_error: float
    largest_error: float
    linear_error: float
    """Median of perfect linear scaling."""
    same_error: float
    """Median of the step time of the largest known."""
    gain: tuple[float, float | None, float | None]
    """Mean absolute log error of the better baseline minus the prediction's, with its 95 % interval (bootstrap over
    series; None of fewer than 3): above 0 the prediction is better."""
    cover80: float
    cover95: float
    half_width: float
    """Median half-width of the 95 % interval over the median."""
    score: float
    """Mean interval score of the logarithms at 95 % (Gneiting & Raftery 2007): width and 40 times what lies outside."""
    baseline_score: float
    """The same of the better baseline with an interval that is the other points' spread."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def __str__(self) -> str:
        """As one line."""
        low, high = (math.nan if one is None else one for one in self.gain[1:])
        return (
            f"{self.points:4d} points, error {self.median_error:6.1%} median {self.largest_error:6.1%} max; linear "
            f"{self.linear_error:6.1%}, same step {self.same_error:6.1%}; better by {self.gain[0]:+.3f} [{low:+.3f}, "
            f"{high:+.3f}]; cover 95: {self.cover95:4.0%}, 80: {self.cover80:4.0%}; half-width {self.half_width:5.1%}; "
            f"score {self.score:.3f} against {self.baseline_score:.3f}"
        )


def score(series: Series, fitted: int, table: str = "") -> list[Scored]:
    """Show the `fitted` smallest world sizes of a series, predict the others; none where no more are measured."""
    shown = series.first(fitted)
    cut = max((one.layout.world_size for one in shown.observations), default=0)
    hidden = [one for one in series.measured if one.layout.world_size > cut]
    if not hidden or len({one.layout.world_size for one in shown.measured}) < fitted:
        return []
    calibration = calibrate(shown)
    found = []
    for one, said in zip(hidden, predict_layouts(calibration, [one.layout for one in hidden]), strict=True):
        found.append(
            Scored(
                table, series.name, fitted, cut, one.layout.world_size, one.step_s or math.nan, said,
                _linear(shown, one), _same(shown),
            )
        )  # fmt: skip
    return found


def from_sheets(series: Series) -> list[tuple[Quantiles, float]]:
    """What is said of a series of which nothing is shown, with what was measured, seconds.

    None where its device, model or precision has no figures.
    """
    bare = tuple(Observation(one.layout, None) for one in series.observations)
    try:
        calibration = calibrate(replace(series, observations=bare))
    except UsageError:
        return []
    said = predict_layouts(calibration, [one.layout for one in series.measured])
    pairs = zip(said, series.measured, strict=True)
    return [(one, seen.step_s) for one, seen in pairs if seen.step_s is not None]


@dataclass(frozen=True)
class SheetSummary:
    """Of points said from data sheets only. Errors are fractions, absolute."""

    points: int
    median_error: float
    largest_error: float
    cover80: float
    cover95: float
    half_width: float
    """Median half-width of the 95 % interval over the median."""

    def __str__(self) -> str:
        """As one line."""
        return (
            f"{self.points:4d} points, error {self.median_error:6.1%} median {self.largest_error:6.1%} max; "
            f"cover 95: {self.cover95:4.0%}, 80: {self.cover80:4.0%}; half-width {self.half_width:5.1%}"
        )


def sheet_summary(points: Sequence[tuple[Quantiles, float]]) -> SheetSummary | None:
    """Summarise; None where nothing could be said."""
    if not points:
        return None
    errors = [abs(said.median / seen - 1) for said, seen in points]
    return SheetSummary(
        len(points),
        median(errors),
        max(errors),
        fmean(said.low80 <= seen <= said.high80 for said, seen in points),
        fmean(said.low95 <= seen <= said.high95 for said, seen in points),
        median(said.half_width for said, _ in points),
    )


def _work(one: Observation) -> float:
    return one.layout.micro_batch * one.layout.grad_accum


def _linear(shown: Series, one: Observation) -> float:
    first = shown.measured[0]
    return (first.step_s or math.nan) * _work(one) / _work(first)


def _same(shown: Series) -> float:
    return shown.measured[-1].step_s or math.nan


def summary(points: Sequence[Scored]) -> Summary:
    """Summarise at least one point."""
    errors = np.array([abs(one.error) for one in points])
    logs = np.array([abs(math.log(one.said.median / one.seen_s)) for one in points])
    linear = np.array([abs(math.log(one.linear_s / one.seen_s)) for one in points])
    same = np.array([abs(math.log(one.same_s / one.seen_s)) for one in points])
    better = linear if linear.mean() <= same.mean() else same
    return Summary(
        len(points),
        float(np.median(errors)),
        float(errors.max()),
        float(np.median(np.expm1(linear))),
        float(np.median(np.expm1(same))),
        _gain(points, better - logs),
        float(np.mean([one.said.low80 <= one.seen_s <= one.said.high80 for one in points])),
        float(np.mean([one.said.low95 <= one.seen_s <= one.said.high95 for one in points])),
        median(one.said.half_width for one in points),
        float(np.mean([_interval_score(one.seen_s, one.said.low95, one.said.high95) for one in points])),
        _baseline_score(better),
    )


def _gain(points: Sequence[Scored], gains: NDArray[np.float64]) -> tuple[float, float | None, float | None]:
    names = sorted({(one.table, one.series) for one in points})
    if len(names) < _FEWEST_SERIES:
        return float(gains.mean()), None, None
    groups = [gains[[(one.table, one.series) == name for one in points]] for name in names]
    rng = np.random.default_rng(0)
    sums, counts = np.array([group.sum() for group in groups]), np.array([len(group) for group in groups])
    picked = rng.integers(0, len(groups), (2000, len(groups)))
    means = sums[picked].sum(axis=1) / counts[picked].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(gains.mean()), float(low), float(high)


def _interval_score(seen: float, low: float, high: float) -> float:
    below, above = max(0.0, math.log(low / seen)), max(0.0, math.log(seen / high))
    return math.log(high / low) + 40 * (below + above)


def _baseline_score(errors: NDArray[np.float64]) -> float:
    """Its interval: a Gaussian around it with the root mean square of its own errors, the best it could know."""
    half = float(-ndtri(0.025)) * float(np.sqrt(np.mean(np.square(errors))))
    return float(np.mean(2 * half + 40 * np.maximum(0, errors - half)))


def table(points: Sequence[Scored]) -> str:
    """One line per point."""
    return "\n".join(
        f"{one.error:+7.1%} {one.table[:24]:24s} {one.series[:44]:44s} {one.fitted} counts to {one.largest:4d} -> "
        f"{one.world_size:5d}: {one.seen_s:9.4g} s, said {one.said.median:9.4g} [{one.said.low95:.4g}, "
        f"{one.said.high95:.4g}], linear {one.linear_s / one.seen_s - 1:+.1%}"
        for one in points
    )


def noise_floor(series: Sequence[Series]) -> float | None:
    """Median of how far apart two runs of one configuration are, as a fraction; None where nothing was run twice.

    A configuration is device, model, engine, stage, precision and layout, whatever the series: what differs between two
    such runs is the day, or how long they took. Without a device only runs of one series count as the same.
    """
    found: dict[tuple[object, ...], list[float]] = {}
    for one in series:
        where = (one.device or one.name, one.model, one.engine, one.zero_stage, one.precision)
        for seen in one.measured:
            found.setdefault((*where, seen.layout), []).append(seen.step_s or math.nan)
    apart = [abs(math.log(a / b)) for times in found.values() for a, b in combinations(times, 2)]
    return math.expm1(median(apart)) if apart else None
