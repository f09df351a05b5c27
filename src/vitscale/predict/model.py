"""From a series to a prediction: `calibrate` fits, `predict` asks. The interface of this room for everyone else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from scipy.special import ndtri

from vitscale.cost.scaling import Array, Layout, Schedule, parts, schedule
from vitscale.errors import UsageError
from vitscale.predict import memory
from vitscale.predict.change import Change, changed
from vitscale.predict.fit import Evidence, Posterior, covariance, evidence, fit, log_ratios
from vitscale.predict.priors import PARAMETERS, find_device, mechanisms, priors
from vitscale.predict.series import Asked, Observation, Series

METHOD = "mechanisms of cost.scaling, Bayesian fit by importance sampling, random-walk discrepancy in log2 N"
MOST_RANKS = 100_000_000

_LEVELS = (0.025, 0.1, 0.5, 0.9, 0.975)
_SCORES = ndtri((np.arange(8) + 0.5) / 8)
"""Equally likely standard normal values: each draw's Gaussian stands for itself by eight."""


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
class Calibration:
    """What a series says of its mechanisms: what `predict` starts from, and `calibration.json` keeps."""

    series: Series
    reference_micro_batch: float
    plan: Schedule
    seen: Evidence
    posterior: Posterior
    micro_step_s: Parameter
    """m: seconds of forward and backward of the reference micro-batch."""
    parameters: dict[str, Parameter]
    """By the names of `priors.PARAMETERS`: ratios to m, see `cost.scaling`; noise and drift as logarithms' sd."""
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class Loss:
    """Shares of the step at the medians of the parameters: what limits."""

    small_batch: float
    """The part of compute that a larger micro-batch would not have."""
    update: float
    communication: float
    waiting: float

    @property
    def limit(self) -> str:
        """The dearest of them, in words; `compute` where each takes less than 5 % of the step."""
        dearest = max(
            ("small_batch", "update", "communication", "waiting"), key=lambda name: float(getattr(self, name))
        )
        return dearest.replace("_", " ") if getattr(self, dearest) >= 0.05 else "compute"


@dataclass(frozen=True)
class Point:
    """One world size."""

    layout: Layout
    step_s: Quantiles
    images_per_s: Quantiles
    speedup: Quantiles
    efficiency: Quantiles
    memory_bytes: int | None
    """Of one rank, a lower bound by closed form; None where the model is no timm ViT."""
    losses: Loss
    assumptions: tuple[str, ...]


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
    assumptions: tuple[str, ...]


def calibrate(series: Series, draws: int = 2000) -> Calibration:
    """Fit a series; without a measured step the priors stand ("specs only").

    Raises:
        UsageError: no layout at all, or one that is not measured of a device or model of which no figures are known.
    """
    if not series.observations:
        raise UsageError(f"series `{series.name}` has no runs", "at least one run, or a row without times, is needed")
    reference = max(one.layout.micro_batch for one in series.measured or series.observations)
    plan = schedule(series.engine, series.zero_stage, on_cpu=series.device == "cpu")
    prior = priors(series, reference)
    if not series.measured and prior.micro_step_s is None:
        raise UsageError(
            f"series `{series.name}` has no times, and {prior.assumptions[0]}", "measure one run: `vitscale run`"
        )
    seen = evidence(series.observations, reference, plan, prior)
    posterior = fit(seen, draws)
    names = {name: _parameter(posterior.parameters[:, index]) for index, name in enumerate(PARAMETERS)}
    micro = np.exp(_log_micro(seen, posterior.parameters))
    told = (*series.remarks, *prior.assumptions, *_data_told(series))
    return Calibration(series, reference, plan, seen, posterior, _parameter(micro), names, told)


def predict(
    calibration: Calibration,
    world_sizes: Sequence[int],
    asked: Asked | None = None,
    *,
    ranks_per_node: int | None = None,
) -> Prediction:
    """Predict world sizes of a calibrated series.

    Args:
        calibration: of `calibrate`.
        world_sizes: asked, in any order.
        asked: what differs from the series: protocol, batch, engine, stage, precision, device, link; None is nothing.
        ranks_per_node: of the asked layouts; None takes the series' fullest node.

    Raises:
        UsageError: a world size that cannot be, or a change that cannot be told from the series.
    """
    asked = asked or Asked()
    for size in world_sizes:
        if not 1 <= size <= MOST_RANKS:
            raise UsageError(f"a world size of {size:,} is not predicted", f"1 to {MOST_RANKS:,}")
    change = changed(calibration.series, asked, calibration.micro_step_s.median)
    layouts = [layout_of(calibration.series, asked, size, ranks_per_node) for size in sorted(set(world_sizes))]
    base = _baseline(calibration, asked, ranks_per_node)
    logs = _draws(calibration, [*layouts, base], change)
    own = calibration.series.measured
    base_log = logs[-1] if change.any or not own else np.full_like(logs[-1], math.log(_fastest(own, base)))
    theta = change.parameters(calibration.posterior.parameters)
    points = tuple(
        _point(calibration, change, layout, base, logs[index], base_log, theta) for index, layout in enumerate(layouts)
    )
    told = (*calibration.assumptions, *change.assumptions)
    return Prediction(
        calibration.series.name, METHOD, asked.told, points, base.world_size, _knee(points), _pays(points), told
    )


def predict_layouts(calibration: Calibration, layouts: Sequence[Layout]) -> list[Quantiles]:
    """Steps of exactly these layouts, in the configuration of the series, seconds."""
    change = changed(calibration.series, Asked(), calibration.micro_step_s.median)
    return [quantiles(np.exp(logs)) for logs in _draws(calibration, list(layouts), change)]


def step_draws(calibration: Calibration, layouts: Sequence[Layout], asked: Asked) -> list[Array]:
    """Draws of the step's seconds, the same parameters draw by draw.

    Where runs were measured, what is left is noise, each layout's own; else most of it is the speed of the device,
    which all layouts share.
    """
    change = changed(calibration.series, asked, calibration.micro_step_s.median)
    rng, found = np.random.default_rng(0), []
    for layout in layouts:
        (logs,) = _draws(calibration, [layout], change)
        by_draw = logs.reshape(-1, len(_SCORES))
        found.append(np.exp(rng.permuted(by_draw, axis=1) if calibration.seen.rows else by_draw).ravel())
    return found


def layout_of(series: Series, asked: Asked, world_size: int, ranks_per_node: int | None) -> Layout:
    """The series' next member: what its protocol keeps stays, the rest is solved."""
    per_node = ranks_per_node or asked.ranks_per_node or _fullest(series, world_size)
    nodes = max(1, -(-world_size // per_node))
    same = next((one.layout for one in series.observations if one.layout.world_size == world_size), None)
    if same is not None and not asked.batch and ranks_per_node in (None, per_node) and same.nodes == nodes:
        return same
    largest = max((one.layout for one in series.observations), key=lambda one: one.world_size)
    micro = float(asked.micro_batch or largest.micro_batch)
    protocol = asked.protocol or series.protocol
    if protocol != "strong" or (asked.micro_batch and asked.grad_accum):
        return Layout(world_size, nodes, micro, asked.grad_accum or largest.grad_accum)
    total = asked.global_batch or largest.global_batch
    return _strong(series, asked, Layout(world_size, nodes, micro, 1), total)


def _strong(series: Series, asked: Asked, at: Layout, total: float) -> Layout:
    """Equal global batch: accumulation gives way where the series varies it, else the micro-batch."""
    if total < at.world_size:
        raise UsageError(
            f"a global batch of {total:g} leaves {at.world_size:,} ranks without an image each",
            "ask for fewer ranks, a larger `global_batch`, or protocol=weak",
        )
    share = total / at.world_size
    accums = {one.layout.grad_accum for one in series.observations}
    if asked.grad_accum:
        return replace(at, micro_batch=share / asked.grad_accum, grad_accum=asked.grad_accum)
    if (len(accums) > 1 or asked.micro_batch) and share >= at.micro_batch:
        accum = max(1, round(share / at.micro_batch))
        return replace(at, micro_batch=share / accum, grad_accum=accum)
    accum = 1 if len(accums) > 1 else next(iter(accums))
    return replace(at, micro_batch=share / accum, grad_accum=accum)


def _fullest(series: Series, world_size: int) -> int:
    """Ranks on a node: the series' fullest, or where one node held all, the device's usual server."""
    seen = max(math.ceil(one.layout.world_size / one.layout.nodes) for one in series.observations)
    if any(one.layout.nodes > 1 for one in series.observations) or world_size <= seen:
        return seen
    device = find_device(series.device)
    return max(seen, device.devices_per_node or seen) if device else seen


def _baseline(calibration: Calibration, asked: Asked, ranks_per_node: int | None) -> Layout:
    series = calibration.series
    smallest = min((one.layout for one in series.measured or series.observations), key=lambda one: one.world_size)
    return layout_of(series, asked, smallest.world_size, ranks_per_node) if asked.any else smallest


def _fastest(own: Sequence[Observation], base: Layout) -> float:
    times = [one.step_s for one in own if one.layout.world_size == base.world_size and one.step_s is not None]
    return float(np.median(times))


def _point(
    calibration: Calibration, change: Change, layout: Layout, base: Layout, logs: Array, base_log: Array, theta: Array
) -> Point:
    step = np.exp(logs)
    rate = layout.global_batch / step
    gain = rate / (base.global_batch / np.exp(base_log))
    if layout == base:
        gain = np.ones_like(gain)
    series = change.series
    return Point(
        layout,
        quantiles(step),
        quantiles(rate),
        quantiles(gain),
        quantiles(gain * base.world_size / layout.world_size),
        memory.rank_bytes(series, layout),
        _losses(theta, layout, calibration.reference_micro_batch, change.plan),
        _point_told(calibration.series, layout),
    )


def gaussian(calibration: Calibration, layouts: Sequence[Layout], change: Change) -> tuple[Array, Array]:
    """Of each draw, mean (draws, n) and covariance (draws, n, n) of ln step given the evidence, without own noise."""
    theta, seen = calibration.posterior.parameters, calibration.seen
    own = log_ratios(seen, change.parameters(theta), [(layout, "step") for layout in layouts], change.plan)
    mean = seen.log_micro_s + change.log_scale + own
    total = covariance(seen, theta, list(layouts))
    count = len(seen.rows)
    spread = total[:, count:, count:]
    if count:
        values = np.array([row.log_value for row in seen.rows])
        known = log_ratios(seen, theta, [(row.layout, row.kind) for row in seen.rows])
        across = total[:, count:, :count]
        gain = np.linalg.solve(total[:, :count, :count], np.swapaxes(across, 1, 2))
        mean = mean + np.einsum("dra,dr->da", gain, values - seen.log_micro_s - known)
        spread = spread - across @ gain
    return mean, spread


def _draws(calibration: Calibration, layouts: Sequence[Layout], change: Change) -> list[Array]:
    """Draws of ln step for each layout: the Gaussian given theta, by its equally likely values."""
    mean, spread = gaussian(calibration, layouts, change)
    variance = np.maximum(np.diagonal(spread, axis1=1, axis2=2), 0)
    noise = calibration.posterior.parameters[:, PARAMETERS.index("noise")]
    deviation = np.sqrt(variance + np.square(noise)[:, None] + change.log_sd**2)
    return [(mean[:, [index]] + deviation[:, [index]] * _SCORES).ravel() for index in range(len(layouts))]


def _log_micro(seen: Evidence, theta: Array) -> Array:
    """E[ln m | theta, rows]."""
    if not seen.rows:
        rng = np.random.default_rng(1)
        drawn: Array = seen.log_micro_s + seen.log_micro_sd * rng.standard_normal(len(theta))
        return drawn
    values = np.array([row.log_value for row in seen.rows])
    off = values - seen.log_micro_s - log_ratios(seen, theta, [(row.layout, row.kind) for row in seen.rows])
    solved = np.linalg.solve(covariance(seen, theta, []), off[..., None])[..., 0]
    found: Array = seen.log_micro_s + seen.log_micro_sd**2 * solved.sum(axis=1)
    return found


def _losses(theta: Array, layout: Layout, reference: float, plan: Schedule) -> Loss:
    middle = mechanisms(np.median(theta, axis=0, keepdims=True))
    found = parts(middle, layout, reference, plan)
    step = float(found.step[0])
    ideal = layout.grad_accum * layout.micro_batch / reference
    lost = max(0.0, float(found.compute[0]) - ideal)
    return Loss(lost / step, float(found.update[0]) / step, float(found.exposed[0]) / step, float(found.wait[0]) / step)


def quantiles(values: Array) -> Quantiles:
    """Median and intervals of draws."""
    low95, low80, median, high80, high95 = (float(one) for one in np.quantile(values, _LEVELS))
    return Quantiles(median, low80, high80, low95, high95)


def _parameter(values: Array) -> Parameter:
    low, median, high = (float(one) for one in np.quantile(values, (0.025, 0.5, 0.975)))
    return Parameter(median, low, high)


def _knee(points: tuple[Point, ...]) -> int | None:
    if len(points) < 2:
        return None
    return min(points, key=lambda one: one.layout.world_size / one.images_per_s.median**2).layout.world_size


def _pays(points: tuple[Point, ...]) -> int | None:
    found = None
    for before, after in pairwise(points):
        gain = after.images_per_s.median / before.images_per_s.median - 1
        if gain < 0.5 * (after.layout.world_size / before.layout.world_size - 1):
            break
        found = after.layout.world_size
    return found


def _data_told(series: Series) -> tuple[str, ...]:
    sizes = {one.layout.world_size for one in series.measured}
    if not sizes:
        return ("nothing was measured: data sheets and priors only",)
    if len(sizes) == 1:
        return ("one world size was measured: how the step changes with it is the priors' alone",)
    return ()


def _point_told(series: Series, layout: Layout) -> tuple[str, ...]:
    own = series.measured
    if not own:
        return ()
    told = []
    largest, smallest = (end(one.layout.world_size for one in own) for end in (max, min))
    if layout.world_size > 16 * largest:
        told.append(f"{layout.world_size / largest:,.0f} times the largest measured world size")
    if layout.world_size < smallest:
        told.append(f"below the smallest measured world size, {smallest}")
    if layout.nodes > 1 and all(one.layout.nodes == 1 for one in own):
        told.append("no run across nodes was measured: the network is a prior's")
    return tuple(told)
