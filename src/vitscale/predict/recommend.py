"""Which configuration to run: every candidate is predicted, what breaks a limit is out, noise is not ranked.

1. A candidate fits where the memory form says so with `SURE`; it keeps a deadline or a budget where that share of its
   draws does.
2. The aim: the least cost where a deadline is given, the least time where only a budget is, else the least product of
   both, the knee of `analysis.costs`.
3. Candidates are compared draw by draw, so that what they share (the speed of the device, a series' parameters) does
   not count as noise between them. Where the 95 % interval of the ratio of their aims holds 1, no difference is
   detected. A wide interval is no reason to take what is slower at the median, so the simplest is chosen
   (`Candidate.complexity`) of the best by the median and of those that tie with it and are `NEAR` it; what is said of
   the others is by their ratio to the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vitscale.cost.device_memory import DeviceNeed
from vitscale.cost.scaling import Array
from vitscale.errors import UsageError
from vitscale.predict.candidates import Candidate
from vitscale.predict.model import Quantiles, quantiles
from vitscale.units import number, percent, seconds, size

SURE = 0.9
"""Probability with which a limit has to be kept."""

NEAR = 0.03
"""How far apart the medians of two that tie may be for the simpler to stand for both, as the choice or on the front."""

Steps = Callable[[Sequence[Candidate]], list[Array]]
"""Draws of the step's seconds, one array a candidate, draw by draw from the same parameters."""
Needs = Callable[[Candidate], DeviceNeed]


@dataclass(frozen=True)
class Limits:
    """What must not be exceeded; None is no limit."""

    deadline_s: float | None = None
    budget: float | None = None


@dataclass(frozen=True)
class Work:
    """What has to be trained."""

    images: float
    """Over all epochs."""
    global_batch: int

    @property
    def steps(self) -> float:
        """Optimizer steps."""
        return self.images / self.global_batch


@dataclass(frozen=True)
class Judged:
    """A candidate with its prediction, and why it is not the choice."""

    candidate: Candidate
    fit_probability: float | None
    memory_bytes: int
    """Median need of one rank."""
    time_s: Quantiles | None
    cost: Quantiles | None
    """In the currency of the price, or device-hours without one."""
    lost: str | None
    """The reason; None for the choice."""

    def document(self) -> dict[str, Any]:
        """As JSON."""
        one = self.candidate
        return {
            "device": one.pool.device,
            "world_size": one.layout.world_size,
            "nodes": one.layout.nodes,
            **asdict(one.way),
            "micro_batch": round(one.layout.micro_batch),
            "grad_accum": one.layout.grad_accum,
            "fit_probability": self.fit_probability,
            "memory_needed_bytes": self.memory_bytes,
            "time_s": None if self.time_s is None else asdict(self.time_s),
            "cost": None if self.cost is None else asdict(self.cost),
            "lost": self.lost,
        }


@dataclass(frozen=True)
class Recommendation:
    """The choice, what else would be reasonable, and what lost."""

    choice: Judged
    tied: int
    """Candidates of which no difference from the choice is detected."""
    front: tuple[Judged, ...]
    """Least time against least cost, by medians, the fastest first; of what is alike the simplest."""
    losers: tuple[Judged, ...]
    aim: str


@dataclass(frozen=True)
class _Drawn:
    candidate: Candidate
    need: DeviceNeed
    fits: float | None
    time_s: Array
    cost: Array
    aim: Array


def recommend(
    candidates: Sequence[Candidate], work: Work, limits: Limits, needs: Needs, steps: Steps
) -> Recommendation:
    """Choose.

    Raises:
        UsageError: no candidate, or none that keeps the limits; the hint names the one that comes nearest.
    """
    if not candidates:
        raise UsageError(
            f"no number of these devices divides a global batch of {work.global_batch:,}",
            "global_batch=… with more factors",
        )
    losers, fitting = _by_memory(candidates, needs)
    if not fitting:
        nearest = min(losers, key=lambda one: one.memory_bytes)
        raise UsageError(f"nothing fits the memory: {nearest.candidate} {nearest.lost}", "more ranks, or --memory")
    times = [work.steps * draws for draws in steps([one for one, _, _ in fitting])]
    drawn = [_drawn(one, need, fits, time, limits) for (one, need, fits), time in zip(fitting, times, strict=True)]
    judged = [(one, _broken(one, limits)) for one in drawn]
    kept = [one for one, reason in judged if reason is None]
    losers += [_judged(one, reason) for one, reason in judged if reason is not None]
    if not kept:
        nearest = min(losers, key=lambda one: one.time_s.median if one.time_s else float("inf"))
        raise UsageError(f"nothing keeps the limits: {nearest.candidate} {nearest.lost}", "more devices, or later")
    return _chosen(kept, losers, limits)


def _by_memory(
    candidates: Sequence[Candidate], needs: Needs
) -> tuple[list[Judged], list[tuple[Candidate, DeviceNeed, float | None]]]:
    losers, fitting = [], []
    for one in candidates:
        need, limit = needs(one), one.pool.memory_bytes
        fits = None if limit is None else need.fit_probability(limit)
        if fits is None or fits >= SURE:
            fitting.append((one, need, fits))
        else:
            reason = f"needs {size(need.median_bytes)} of {size(limit)}: fits with {percent(fits, 0)}"
            losers.append(Judged(one, fits, need.median_bytes, None, None, reason))
    return losers, fitting


def _drawn(one: Candidate, need: DeviceNeed, fits: float | None, time_s: Array, limits: Limits) -> _Drawn:
    price = 1.0 if one.pool.price_per_hour is None else one.pool.price_per_hour
    cost = time_s * (one.layout.world_size * price / 3600)
    aim = cost if limits.deadline_s else time_s if limits.budget else time_s * cost
    return _Drawn(one, need, fits, time_s, cost, aim)


def _broken(one: _Drawn, limits: Limits) -> str | None:
    if limits.deadline_s is not None and (share := float(np.mean(one.time_s <= limits.deadline_s))) < SURE:
        taken = seconds(float(np.median(one.time_s)))
        return f"takes {taken}: keeps the deadline with {percent(share, 0)}"
    if limits.budget is not None and (share := float(np.mean(one.cost <= limits.budget))) < SURE:
        return f"costs {number(float(np.median(one.cost)))}: keeps the budget with {percent(share, 0)}"
    return None


def _chosen(kept: Sequence[_Drawn], losers: list[Judged], limits: Limits) -> Recommendation:
    best = min(kept, key=lambda one: float(np.median(one.aim)))
    choice = min(
        (one for one in kept if _alike(one.aim, best.aim)),
        key=lambda one: (one.candidate.complexity, float(np.median(one.aim))),
    )
    aim = "cost" if limits.deadline_s else "time" if limits.budget else "time x cost"
    others = [one for one in kept if one is not choice]
    judged = {id(one): _judged(one, _why(one, choice, best, aim)) for one in others} | {
        id(choice): _judged(choice, None)
    }
    losers += [judged[id(one)] for one in others]
    front = tuple(judged[id(one)] for one in _front(kept))
    return Recommendation(judged[id(choice)], sum(_same(one, choice) for one in others), front, tuple(losers), aim)


def _same(one: _Drawn, other: _Drawn) -> bool:
    return _tie(one.aim, other.aim)


def _tie(one: Array, other: Array) -> bool:
    low, high = np.quantile(one / other, (0.025, 0.975))
    return bool(low <= 1 <= high)


def _why(one: _Drawn, choice: _Drawn, best: _Drawn, aim: str) -> str:
    low, middle, high = (float(value) for value in np.quantile(one.aim / choice.aim, (0.025, 0.5, 0.975)))
    ratio = f"{number(middle)} times the {aim} ({number(low)} to {number(high)})"
    if not _same(one, choice):
        return ratio
    if choice.candidate.complexity < one.candidate.complexity:
        reason = "the choice is simpler"
    elif not _same(one, best):
        reason = f"but not as good as the best, {best.candidate}"
    elif choice.candidate.complexity == one.candidate.complexity:
        reason = "the choice is as simple"
    else:
        above = float(np.median(one.aim) / np.median(best.aim)) - 1
        reason = f"simpler, but its median is {percent(above)} above the least"
    return f"no difference detected, {ratio}; {reason}"


def _front(kept: Sequence[_Drawn]) -> list[_Drawn]:
    """By medians each is dearer and faster than the next; in place of one there may stand a simpler one like it."""
    return _undominated(_simplest(at, kept) for at in _undominated(kept))


def _undominated(of: Iterable[_Drawn]) -> list[_Drawn]:
    found: list[_Drawn] = []
    for one in sorted(of, key=_medians):
        if not found or np.median(one.cost) < np.median(found[-1].cost):
            found.append(one)
    return found


def _medians(one: _Drawn) -> tuple[float, float]:
    return float(np.median(one.time_s)), float(np.median(one.cost))


def _simplest(at: _Drawn, kept: Sequence[_Drawn]) -> _Drawn:
    """Of the same devices: another kind is another offer, however little is known of it."""
    simpler = (
        one
        for one in kept
        if one.candidate.pool == at.candidate.pool and one.candidate.complexity < at.candidate.complexity
    )
    alike = (one for one in simpler if _alike(one.time_s, at.time_s) and _alike(one.cost, at.cost))
    return min(alike, key=lambda one: (one.candidate.complexity, *_medians(one)), default=at)


def _alike(one: Array, other: Array) -> bool:
    """A tie alone may be what little is known of one of them: the medians have to be near each other too."""
    return _tie(one, other) and bool(abs(np.median(one) / np.median(other) - 1) <= NEAR)


def _judged(one: _Drawn, lost: str | None) -> Judged:
    return Judged(one.candidate, one.fits, one.need.median_bytes, quantiles(one.time_s), quantiles(one.cost), lost)
