"""Bayesian fit of the mechanisms to one series: importance sampling over a few parameters, everything else analytic.

1. ln step_i = ln m + ln ratio_i(theta) + drift(log2 N_i) + noise_i. The reference micro-step m has a log-normal prior
   (flat where no data sheet tells), drift is a random walk in log2 N that starts at the smallest measured world size,
   noise is independent per run. Given theta, all of it is Gaussian, so m, drift and noise are integrated out exactly
   (a Gaussian process; Rasmussen & Williams 2006, ch. 2).
2. theta is drawn from its prior and weighted by that likelihood. Where few draws carry the weight, proposals are
   adapted (population Monte Carlo; Cappé et al. 2004): a Student-t around the weighted mean, mixed with the prior.
3. With few data the weights are nearly equal: the prior carries the prediction, and its width is the prior's.
4. Seconds of compute, and of communication with waiting, are further rows of the same Gaussian where records split
   them.

Everything is deterministic: fixed seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from vitscale.cost.scaling import Array, Layout, Schedule, parts
from vitscale.predict.priors import PARAMETERS, Priors, mechanisms
from vitscale.predict.series import Observation

DRAWS = 2000
_PROPOSED = 6000
_ROUNDS = 4
_ENOUGH = 400.0
_UNKNOWN_LOG_SD = 3.0
_SPLIT_LOG_SD = 0.07
"""Compute by a host's or rank 0's timer against compute in the step."""
_COMM_LOG_SD = 0.6
"""Communication by a host's timer: one rank's, and a median where the step's is a mean."""


@dataclass(frozen=True)
class Posterior:
    """Equally weighted draws."""

    parameters: Array
    """(draws, `PARAMETERS`)."""
    effective: float
    """Draws that carried weight before resampling: a few hundred are enough."""


@dataclass(frozen=True)
class _Row:
    layout: Layout
    kind: str
    log_value: float
    launches: int = 1
    spread: float | None = None


@dataclass(frozen=True)
class Evidence:
    """The rows of a series as the likelihood sees them."""

    rows: tuple[_Row, ...]
    reference_micro_batch: float
    plan: Schedule
    priors: Priors

    @property
    def log_micro_s(self) -> float:
        """Prior median of ln m; without one, the first row's own scale."""
        if self.priors.micro_step_s is not None:
            return math.log(self.priors.micro_step_s)
        first = next((row for row in self.rows if row.kind == "step"), None)
        return 0.0 if first is None else first.log_value - math.log(first.layout.grad_accum)

    @property
    def log_micro_sd(self) -> float:
        """Prior standard deviation of ln m."""
        return self.priors.micro_step_log_sd if self.priors.micro_step_s is not None else _UNKNOWN_LOG_SD


def evidence(observations: tuple[Observation, ...], reference: float, plan: Schedule, prior: Priors) -> Evidence:
    """Step times first, then the parts of steps."""
    rows = [
        _Row(one.layout, "step", math.log(one.busy_s), one.launches, one.spread)
        for one in observations
        if one.busy_s is not None
    ]
    for one in observations:
        if one.compute_s:
            rows.append(_Row(one.layout, "compute", math.log(one.compute_s)))
        if one.comm_s and one.layout.world_size > 1:
            rows.append(_Row(one.layout, "comm", math.log(one.comm_s)))
    return Evidence(tuple(rows), reference, plan, prior)


def fit(seen: Evidence, draws: int = DRAWS, seed: int = 0) -> Posterior:
    """Draw the parameters given the evidence; without any, from the prior."""
    rng = np.random.default_rng(seed)
    width = len(PARAMETERS)
    z = rng.standard_normal((_PROPOSED, width))
    if not seen.rows:
        return Posterior(seen.priors.parameters(z[:draws]), float(draws))
    log_weight = _log_likelihood(seen, z)
    for _ in range(_ROUNDS):
        weight, effective = _normalised(log_weight)
        if effective >= _ENOUGH:
            break
        z, log_weight = _adapted(seen, z, log_weight, rng)
    weight, effective = _normalised(log_weight)
    positions = (rng.random() + np.arange(draws)) / draws
    chosen = np.minimum(np.searchsorted(np.cumsum(weight), positions), len(weight) - 1)
    return Posterior(seen.priors.parameters(z[rng.permutation(chosen)]), effective)


def _normalised(log_weight: Array) -> tuple[Array, float]:
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    return weight, float(1 / np.square(weight).sum())


def _adapted(seen: Evidence, z: Array, log_weight: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Propose around what carries weight, tempered so that at least a hundred draws do; a tenth stays the prior's."""
    power = 1.0
    while _normalised(power * log_weight)[1] < 100 and power > 1e-3:
        power *= 0.7
    weight = _normalised(power * log_weight)[0]
    centre = weight @ z
    spread = np.cov(z.T, aweights=weight) + 1e-3 * np.eye(z.shape[1])
    half = np.linalg.cholesky(spread)
    freedom, width = 8.0, z.shape[1]
    scale = np.sqrt(freedom / rng.chisquare(freedom, (len(z), 1)))
    proposed = centre + scale * (rng.standard_normal(z.shape) @ half.T)
    from_prior = rng.random(len(z)) < 0.1
    proposed[from_prior] = rng.standard_normal((int(from_prior.sum()), width))
    white = np.linalg.solve(half, (proposed - centre).T).T
    log_prior = -0.5 * np.square(proposed).sum(axis=1) - 0.5 * width * math.log(2 * math.pi)
    log_t = (
        math.lgamma((freedom + width) / 2)
        - math.lgamma(freedom / 2)
        - 0.5 * width * math.log(freedom * math.pi)
        - np.log(np.diag(half)).sum()
        - 0.5 * (freedom + width) * np.log1p(np.square(white).sum(axis=1) / freedom)
    )
    log_proposal = np.logaddexp(math.log(0.9) + log_t, math.log(0.1) + log_prior)
    return proposed, _log_likelihood(seen, proposed) + log_prior - log_proposal


def _log_likelihood(seen: Evidence, z: Array) -> Array:
    theta = seen.priors.parameters(z)
    values = np.array([row.log_value for row in seen.rows])
    off = values - seen.log_micro_s - log_ratios(seen, theta, [(row.layout, row.kind) for row in seen.rows])
    half = np.linalg.cholesky(covariance(seen, theta, []))
    white = np.linalg.solve(half, off[..., None])[..., 0]
    log_det = np.log(np.diagonal(half, axis1=1, axis2=2)).sum(axis=1)
    total: Array = -0.5 * np.square(white).sum(axis=1) - log_det
    return total


def log_ratios(seen: Evidence, theta: Array, asked: list[tuple[Layout, str]], plan: Schedule | None = None) -> Array:
    """ln of a step, its compute or its communication with waiting, over m: (draws, asked)."""
    known = mechanisms(theta)
    columns = []
    for layout, kind in asked:
        found = parts(known, layout, seen.reference_micro_batch, plan or seen.plan)
        part = {"step": found.step, "compute": found.compute, "comm": found.exposed + found.wait}[kind]
        columns.append(np.log(part))
    return np.stack(columns, axis=-1) if columns else np.empty((len(theta), 0))


def covariance(seen: Evidence, theta: Array, asked: list[Layout]) -> Array:
    """Covariance of the evidence's rows, then of the steps asked for (their own noise not counted): (draws, n, n)."""
    layouts = [row.layout for row in seen.rows] + list(asked)
    steps = np.array([row.kind == "step" for row in seen.rows] + [True] * len(asked))
    at = np.log2([layout.world_size for layout in layouts])
    start = min((one for one, step in zip(at, steps, strict=True) if step), default=0.0) if seen.rows else 0.0
    away = at - start
    walk = 0.5 * (np.abs(away)[:, None] + np.abs(away)[None, :] - np.abs(away[:, None] - away[None, :]))
    walk = np.where(steps[:, None] & steps[None, :], walk, 0.0)
    noise, drift = theta[:, PARAMETERS.index("noise")], theta[:, PARAMETERS.index("drift")]
    total = seen.log_micro_sd**2 + np.square(drift)[:, None, None] * walk
    for index, row in enumerate(seen.rows):
        total[:, index, index] += _variance(row, noise)
    diagonal = np.arange(len(layouts))
    total[:, diagonal, diagonal] += 1e-10
    return total


def _variance(row: _Row, noise: Array) -> Array:
    if row.kind == "step":
        own = np.square(noise) / row.launches
        return own if row.spread is None else np.maximum(own, row.spread**2)
    return np.square(noise) + (_SPLIT_LOG_SD if row.kind == "compute" else _COMM_LOG_SD) ** 2
