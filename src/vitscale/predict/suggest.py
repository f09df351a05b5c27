"""Which further short runs would narrow the interval most: experiment design on the fitted draws.

1. ln step at the asked and at a candidate layout are jointly distributed over the draws: their covariance is that of
   the draws' means, the mean of what the Gaussian given the parameters adds, and what a change is uncertain by.
2. Taken as jointly Gaussian, a launch of candidate c leaves Var - Cov^2 / (Var_c + noise^2) of the asked one's
   variance (linear design; Chaloner & Verdinelli 1995). The best candidate is taken, then the next beside it.
3. The half-width now is the prediction's; its logarithm's shrinks with the standard deviation. The part of it that is
   of what a step takes for its images shrinks only by runs with a nearer number of ranks on a node.
4. What is left never falls below the noise of one launch, which no further run takes away.
5. Runs that cannot be started from here come after those that can.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from vitscale.cost.input import Input
from vitscale.cost.scaling import Array, Layout
from vitscale.predict.change import changed
from vitscale.predict.draws import gaussian
from vitscale.predict.layouts import possible
from vitscale.predict.model import Calibration, Quantiles, layout_of, predict_layouts
from vitscale.predict.priors import PARAMETERS
from vitscale.predict.series import Asked

MOST = 3
_STEPS = 30
_START_S = 30.0
"""Start and warm-up of a launch, taken off by nobody."""
_WORTH = 0.05
"""Share of the interval that a run has to take off."""


@dataclass(frozen=True)
class Start:
    """How a run is added to what the series was read from."""

    command: str | None = None
    """To paste; with a `reason` it is for another machine. None where the runs are rows of a table."""
    launches: int = 0
    """That the command measures, over all runs that it finds missing."""
    others: int = 0
    """Of these, of runs laid out otherwise."""
    remark: str | None = None
    """What becomes of the runs that are there, where they do not stay."""
    reason: str | None = None
    """Why it cannot be started from here; None where it can."""
    row: str | None = None
    """Of a table: the row to add, its times left blank."""


@dataclass(frozen=True)
class Suggestion:
    """One run to add."""

    layout: Layout
    half_width: float
    """Expected half-width of the 95 % interval at the asked world size after it and those before it, as a fraction."""
    device_s: float
    """Ranks times seconds of a short launch."""
    start: Start


@dataclass(frozen=True)
class Advice:
    """What to run next."""

    asked: int
    half_width: float
    """Now, as a fraction."""
    suggestions: tuple[Suggestion, ...]
    """In the order to run them; empty where nothing up to four times the largest measured world size helps."""
    batch_told: bool = True
    """Whether the micro-batch is; else that of the layouts says nothing."""


def suggest(
    calibration: Calibration,
    world_size: int,
    asked: Asked,
    *,
    ranks_per_node: int | None = None,
    start: Callable[[Layout], Start] | None = None,
) -> Advice:
    """Choose up to three runs for the interval at `world_size`.

    Args:
        calibration: of `calibrate`.
        world_size: whose interval is to be narrowed.
        asked: what differs from the series.
        ranks_per_node: of the layouts.
        start: how a run is started; None knows of no obstacle.
    """
    target = layout_of(calibration.series, asked, world_size, ranks_per_node)
    candidates = _candidates(calibration, asked, ranks_per_node, world_size)
    starts = {one: start(one) if start else Start() for one in candidates}
    (said,) = predict_layouts(calibration, [target], asked)
    found = _chosen(calibration, target, said, asked, starts)
    return Advice(world_size, said.half_width, found, calibration.series.batch_told)


def _chosen(
    calibration: Calibration, target: Layout, said: Quantiles, asked: Asked, starts: dict[Layout, Start]
) -> tuple[Suggestion, ...]:
    """The best of the candidates, then the next beside it; `said` is the prediction now."""
    candidates, images, width = list(starts), calibration.series.input, said.half_width
    total, noise, means = _joint(calibration, [target, *candidates], asked)
    first, now = float(total[0, 0]) + noise, math.asinh(width) ** 2
    of_busy = min(now, math.asinh(_busy_width(calibration, target, said, asked)) ** 2)
    of_images = (now - of_busy) / images.log_sd(target) ** 2 if images.readings else 0.0

    def squared(variance: float, told: Input) -> float:
        """Half-width of ln step, squared."""
        return float(of_busy * max(0.0, variance) / first + of_images * told.log_sd(target) ** 2)

    found: list[Suggestion] = []
    left = dict(enumerate(candidates, start=1))
    while left and len(found) < MOST:
        gains = {index: total[0, index] ** 2 / (total[index, index] + noise) for index in left}
        after = {
            index: squared(total[0, 0] + noise - gains[index], images.measured_at(at)) for index, at in left.items()
        }
        worth = [index for index in left if math.sinh(math.sqrt(after[index])) < (1 - _WORTH) * width]
        if not worth:
            break
        here = [index for index in worth if starts[left[index]].reason is None]
        cost = {index: math.sqrt(_device_s(at, means[index])) for index, at in left.items()}
        best = max(here or worth, key=lambda index: (now - after[index]) / cost[index])
        total = total - np.outer(total[:, best], total[best]) / (total[best, best] + noise)
        at = left.pop(best)
        images, now = images.measured_at(at), after[best]
        width = math.sinh(math.sqrt(now))
        found.append(Suggestion(at, width, _device_s(at, means[best]), starts[at]))
    return tuple(found)


def _busy_width(calibration: Calibration, target: Layout, said: Quantiles, asked: Asked) -> float:
    """Half-width of the asked step if it were known what it takes for its images, as a fraction of the whole step."""
    seen = tuple(replace(one, input_s=None) for one in calibration.series.observations)
    bare = replace(calibration, series=replace(calibration.series, observations=seen))
    (busy,) = predict_layouts(bare, [target], asked)
    return busy.half_width * busy.median / said.median


def _candidates(calibration: Calibration, asked: Asked, ranks_per_node: int | None, world_size: int) -> list[Layout]:
    """Powers of two below the asked one, up to four times the largest measured or two nodes; and those measured."""
    own = {one.layout.world_size for one in calibration.series.measured}
    target = layout_of(calibration.series, asked, world_size, ranks_per_node)
    two_nodes = 2 * math.ceil(world_size / target.nodes)
    top = min(world_size - 1, max(two_nodes, 4 * max(own, default=2)))
    sizes = own | {2**power for power in range(31) if 2**power <= top}
    return possible(calibration.series, asked, [size for size in sorted(sizes) if size <= top], ranks_per_node)


def _joint(calibration: Calibration, layouts: list[Layout], asked: Asked) -> tuple[Array, float, list[float]]:
    change = changed(calibration.series, asked, calibration.micro_step_s.median)
    theta = calibration.posterior.parameters
    mean, spread = gaussian(calibration.seen, theta, layouts, change)
    noise = theta[:, PARAMETERS.index("noise")]
    total = np.cov(mean.T).reshape(len(layouts), len(layouts)) + spread.mean(axis=0) + change.log_sd**2
    images, busy_s = calibration.series.input, np.exp(np.median(mean, axis=0))
    means = [float(images.total_s(busy_s[[at]], one, np.zeros(1))[0]) for at, one in enumerate(layouts)]
    return total, float(np.mean(np.square(noise))), means


def _device_s(layout: Layout, step_s: float) -> float:
    return layout.world_size * (_START_S + _STEPS * step_s)
