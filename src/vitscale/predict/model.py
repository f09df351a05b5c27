"""From a series to a prediction: `calibrate` fits, `predict` asks. The interface of this room for everyone else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vitscale.cost.scaling import Array, Layout, Schedule, parts, schedule
from vitscale.errors import UsageError
from vitscale.predict import memory, remarks
from vitscale.predict.change import Change, changed
from vitscale.predict.draws import joint_log_steps, log_gains, log_steps, normals
from vitscale.predict.fit import Evidence, Posterior, covariance, evidence, fit, log_ratios
from vitscale.predict.layouts import baseline_of
from vitscale.predict.layouts import layout_of as layout_of
from vitscale.predict.priors import PARAMETERS, find_device, mechanisms, priors
from vitscale.predict.result import MEMORY, knee, parameter, pays
from vitscale.predict.result import Loss as Loss
from vitscale.predict.result import Memory as Memory
from vitscale.predict.result import Parameter as Parameter
from vitscale.predict.result import Point as Point
from vitscale.predict.result import Prediction as Prediction
from vitscale.predict.result import Quantiles as Quantiles
from vitscale.predict.result import Spending as Spending
from vitscale.predict.result import quantiles as quantiles
from vitscale.predict.series import UNTOLD_BATCH, Asked, Observation, Series
from vitscale.predict.spending import rates, spending

METHOD = "mechanisms of cost.scaling, Bayesian fit by importance sampling, random-walk discrepancy in log2 N"


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


def calibrate(series: Series, draws: int = 2000, seed: int = 0) -> Calibration:
    """Fit a series; without a measured step the priors stand ("specs only").

    Of two fits that are compared draw by draw, the seed says whether what is not known of them is the same.

    Raises:
        UsageError: no layout at all, or one that is not measured of a device or model of which no figures are known.
    """
    if not series.observations:
        raise UsageError(f"series `{series.name}` has no runs", "at least one run, or a row without times, is needed")
    reference = max(one.layout.micro_batch for one in series.measured or series.observations)
    plan = schedule(series.engine, series.zero_stage, series.knobs, on_cpu=series.device == "cpu")
    prior = priors(series, reference)
    if not series.measured and prior.micro_step_s is None:
        raise UsageError(
            f"series `{series.name}` has no times, and {prior.assumptions[0]}", "measure one run: `vitscale run`"
        )
    seen = evidence(series.observations, reference, plan, prior)
    posterior = fit(seen, draws, seed)
    names = {name: parameter(posterior.parameters[:, index]) for index, name in enumerate(PARAMETERS)}
    micro = np.exp(_log_micro(seen, posterior.parameters))
    told = (*series.remarks, *prior.assumptions, *remarks.of_data(series), *remarks.of_input(series))
    told += remarks.of_fit(series, seen, posterior)
    return Calibration(series, reference, plan, seen, posterior, parameter(micro), names, told)


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
        UsageError: a world size below 1 or far beyond the series, or a change that cannot be told from the series.
    """
    asked = asked or Asked()
    for size in world_sizes:
        remarks.refuse_beyond(calibration.series, size)
    change = changed(calibration.series, asked, calibration.micro_step_s.median)
    layouts = [layout_of(calibration.series, asked, size, ranks_per_node) for size in sorted(set(world_sizes))]
    base = _baseline(calibration, asked, ranks_per_node)
    seen, drawn = calibration.seen, calibration.posterior.parameters
    busy = [np.exp(logs) for logs in log_steps(seen, drawn, layouts, change)]
    steps = [_with_input(change, *one) for one in zip(busy, layouts, strict=True)]
    gains = _log_gains(calibration, change, layouts, base, busy, steps)
    theta, known = change.parameters(drawn), rates(calibration.series, asked)
    points = tuple(
        _point(
            calibration,
            change,
            layout,
            base,
            busy[index],
            steps[index],
            gains[index],
            theta,
            spending(calibration.series, asked, known, layout, steps[index]),
        )
        for index, layout in enumerate(layouts)
    )
    told = (*calibration.assumptions, *change.assumptions, *known.assumptions)
    return Prediction(
        calibration.series.name,
        METHOD,
        asked.told,
        points,
        base.world_size,
        knee(points),
        pays(points),
        known.reasons | _reasons(change.series, points),
        told,
    )


def predict_layouts(calibration: Calibration, layouts: Sequence[Layout], asked: Asked | None = None) -> list[Quantiles]:
    """Steps of exactly these layouts, seconds; None asks for the configuration of the series."""
    change = changed(calibration.series, asked or Asked(), calibration.micro_step_s.median)
    drawn = log_steps(calibration.seen, calibration.posterior.parameters, layouts, change)
    pairs = zip(drawn, layouts, strict=True)
    return [quantiles(_with_input(change, np.exp(logs), layout)) for logs, layout in pairs]


def step_draws(calibration: Calibration, layouts: Sequence[Layout], asked: Asked) -> list[Array]:
    """Draws of the step's seconds that can be compared draw by draw, within and between calibrations.

    Where runs were measured, m and drift are the series'; else they are the device's, for all that is run on it.
    """
    series = calibration.series
    change = changed(series, asked, calibration.micro_step_s.median)
    to = change.series
    name = series.name if calibration.seen.rows else str(to.device)
    theta = calibration.posterior.parameters
    launch = f"{name} {to.device} {to.engine} {to.zero_stage} {to.precision}"
    drawn = joint_log_steps(calibration.seen, theta, layouts, change, name, launch)
    return [_with_input(change, np.exp(logs), layout) for logs, layout in zip(drawn, layouts, strict=True)]


def _with_input(change: Change, busy_s: Array, layout: Layout) -> Array:
    """Draws of a step with what it takes for its images, one uncertainty for all layouts of a series."""
    told, name = change.series.input, f"input {change.series.name}"
    return told.total_s(busy_s, layout, normals(name, busy_s.shape), change.log_sd) if told.readings else busy_s


def _log_gains(
    calibration: Calibration,
    change: Change,
    layouts: Sequence[Layout],
    base: Layout,
    busy: Sequence[Array],
    steps: Sequence[Array],
) -> list[Array]:
    """Draws of ln of the base's step over each layout's: the measured one, or under a change a launch like it."""
    series = calibration.series
    if series.measured and not change.any:
        return [math.log(_seen_s(series.measured, base)) - np.log(step_s) for step_s in steps]
    alone = log_gains(calibration.seen, calibration.posterior.parameters, layouts, base, change)
    if not series.input.readings:
        return alone
    found = []
    for gain, busy_s, layout in zip(alone, busy, layouts, strict=True):
        at = np.full_like(gain, np.median(busy_s))
        found.append(np.log(_with_input(change, at * np.exp(gain), base) / _with_input(change, at, layout)))
    return found


def _baseline(calibration: Calibration, asked: Asked, ranks_per_node: int | None) -> Layout:
    own = baseline_of(calibration.series)
    return layout_of(calibration.series, asked, own.world_size, ranks_per_node) if asked.any else own


def _seen_s(own: Sequence[Observation], base: Layout) -> float:
    return float(np.median([one.step_s for one in own if one.layout == base and one.step_s is not None]))


def _point(
    calibration: Calibration,
    change: Change,
    layout: Layout,
    base: Layout,
    busy: Array,
    step: Array,
    gains: Array,
    theta: Array,
    spent: Spending,
) -> Point:
    gain = np.ones_like(gains) if layout == base else np.exp(gains) * layout.global_batch / base.global_batch
    series, batch_told = change.series, calibration.series.batch_told
    device = find_device(series.device)
    held = memory.memory_of(series, layout, None if device is None else device.memory_bytes)
    busy_share = float(np.median(busy) / np.median(step))
    return Point(
        layout,
        quantiles(step),
        quantiles(layout.global_batch / step) if batch_told else None,
        quantiles(gain),
        quantiles(gain * base.world_size / layout.world_size),
        held,
        spent,
        _losses(theta, layout, calibration.reference_micro_batch, change.plan, busy_share),
        remarks.of_layout(calibration.series, series, layout, held),
    )


def _reasons(series: Series, points: Sequence[Point]) -> dict[str, str]:
    """Why figures of all points are None, by their names."""
    found = {} if series.batch_told else {"images_per_s": UNTOLD_BATCH}
    why = memory.untold(series)
    if why is not None:
        return found | dict.fromkeys(MEMORY, why)
    if all(one.memory is None or one.memory.limit_bytes is None for one in points):
        found |= dict.fromkeys(MEMORY[2:], "the memory of the device is not in the catalog")
    return found


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


def _losses(theta: Array, layout: Layout, reference: float, plan: Schedule, busy_share: float) -> Loss:
    middle = mechanisms(np.median(theta, axis=0, keepdims=True))
    found = parts(middle, layout, reference, plan)
    step = float(found.step[0]) / busy_share
    ideal = layout.grad_accum * layout.micro_batch / reference
    lost = max(0.0, float(found.compute[0]) - ideal)
    update, exposed, wait = (float(part[0]) / step for part in (found.update, found.exposed, found.wait))
    return Loss(lost / step, update, exposed, wait, 1 - busy_share)
