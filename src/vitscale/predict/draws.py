"""Draws of ln step given a fit: what two layouts share stays common, what a launch has alone does not.

1. Given the parameters, ln step is Gaussian: what the evidence leaves open of m and drift, the noise of its own
   launch, and what a change of device, precision, engine or link is uncertain by.
2. m and drift are shared by all layouts of a fit, the uncertainty of a change by all that it is made for, noise by
   nothing. So a ratio of two steps has the variance of their difference, with both noises.
3. Standard normal values go by a name: one name is one uncertainty, and two names are independent.

Many layouts at once are drawn by conditioning a draw of the prior on the rows (Matheron's rule; Doucet 2010).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from scipy.special import ndtri

from vitscale.cost.scaling import Array, Layout
from vitscale.predict.change import Change
from vitscale.predict.fit import Evidence, covariance, log_ratios
from vitscale.predict.priors import PARAMETERS

_EACH = 8
"""Values of the Gaussian for each draw of the parameters."""


def seed(name: str) -> int:
    """Of the random numbers of a name, the same in every process."""
    return zlib.crc32(name.encode())


def normals(name: str, shape: tuple[int, ...]) -> Array:
    """Standard normal values, evenly spread over the distribution, in an order that the name decides."""
    count = int(np.prod(shape))
    found: Array = np.random.default_rng(seed(name)).permutation(ndtri((np.arange(count) + 0.5) / count))
    return found.reshape(shape)


def gaussian(seen: Evidence, theta: Array, layouts: Sequence[Layout], change: Change) -> tuple[Array, Array]:
    """Of each draw, mean (draws, n) and covariance (draws, n, n) of ln step given the evidence, without own noise."""
    own = log_ratios(seen, change.parameters(theta), [(layout, "step") for layout in layouts], change.plan)
    mean = seen.log_micro_s + change.log_scale + own
    total, count = covariance(seen, theta, list(layouts)), len(seen.rows)
    spread = total[:, count:, count:]
    if count:
        across = total[:, count:, :count]
        gain = np.linalg.solve(total[:, :count, :count], np.swapaxes(across, 1, 2))
        mean = mean + np.einsum("dra,dr->da", gain, _off(seen, theta))
        spread = spread - across @ gain
    return mean, spread


def log_steps(seen: Evidence, theta: Array, layouts: Sequence[Layout], change: Change) -> list[Array]:
    """Draws of ln step, each layout by itself."""
    mean, spread = gaussian(seen, theta, layouts, change)
    own = np.diagonal(spread, axis1=1, axis2=2)
    variance = own + np.square(_noise(theta))[:, None] + change.log_sd**2
    return [_spread_out(mean[:, index], variance[:, index]) for index in range(len(layouts))]


def log_gains(seen: Evidence, theta: Array, layouts: Sequence[Layout], base: Layout, change: Change) -> list[Array]:
    """Draws of ln of the base's step over each layout's, a launch of each: a change's uncertainty is in both."""
    mean, spread = gaussian(seen, theta, [*layouts, base], change)
    found = []
    for index in range(len(layouts)):
        shared = spread[:, index, index] + spread[:, -1, -1] - 2 * spread[:, index, -1]
        variance = np.maximum(shared, 0) + 2 * np.square(_noise(theta))
        found.append(_spread_out(mean[:, -1] - mean[:, index], variance))
    return found


def joint_log_steps(
    seen: Evidence, theta: Array, layouts: Sequence[Layout], change: Change, name: str, noise_name: str
) -> list[Array]:
    """Draws of ln step of many layouts that can be compared draw by draw.

    Args:
        seen: evidence of the fit.
        theta: its draws of the parameters.
        layouts: asked.
        change: what differs from the fit.
        name: of what m and drift belong to; fits of one name share them.
        noise_name: of the configuration, whose launches have noise of their own.
    """
    sizes = sorted({layout.world_size for layout in layouts})
    total, count = covariance(seen, theta, [Layout(size, 1, 1, 1) for size in sizes]), len(seen.rows)
    shape = (len(theta), _EACH)
    white = np.stack([normals(f"{name} {index}", shape) for index in range(total.shape[1])], axis=1)
    drawn = np.linalg.cholesky(total) @ white
    level = drawn[:, count:]
    if count:
        gain = np.linalg.solve(total[:, :count, :count], total[:, :count, count:])
        level = level + np.swapaxes(gain, 1, 2) @ (_off(seen, theta)[..., None] - drawn[:, :count])
    ratios = log_ratios(seen, change.parameters(theta), [(layout, "step") for layout in layouts], change.plan)
    common = np.full(shape, seen.log_micro_s + change.log_scale)
    for what, sd in change.log_sds.items():
        common += sd * normals(what, shape)
    found = []
    for index, layout in enumerate(layouts):
        noise = _noise(theta)[:, None] * normals(f"{noise_name} {layout}", shape)
        found.append((common + level[:, sizes.index(layout.world_size)] + ratios[:, [index]] + noise).ravel())
    return found


def _off(seen: Evidence, theta: Array) -> Array:
    """How far the rows are from the mechanisms' own: (draws, rows)."""
    values = np.array([row.log_value for row in seen.rows])
    known = log_ratios(seen, theta, [(row.layout, row.kind) for row in seen.rows])
    off: Array = values - seen.log_micro_s - known
    return off


def _noise(theta: Array) -> Array:
    return theta[:, PARAMETERS.index("noise")]


def _spread_out(mean: Array, variance: Array) -> Array:
    white = normals("launch", (len(mean), _EACH))
    found: Array = mean[:, None] + np.sqrt(np.maximum(variance, 0))[:, None] * white
    return found.ravel()
