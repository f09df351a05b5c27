"""What training takes: power, energy and money, per epoch and to the target accuracy, and where more stops paying.

Energy is that of the devices alone (`devices.py`). Cost is `hardware.price_per_hour` times devices times time.

The **knee** of a series is the world size at which time and cost per image, multiplied, are least. Up to it each step
up cuts the time by a larger factor than it raises the cost; past it the cost rises by the larger factor. For a doubling
the border is a gain of sqrt(2), 71 % of what two devices could give. Time per image is 1 / images_per_s and cost goes
with N / images_per_s, so that the knee is where N / images_per_s^2 is least, whatever the price.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from vitscale.analysis.devices import readings
from vitscale.analysis.load import LaunchFigures, Run, StudyData
from vitscale.analysis.result import Costs, Devices, DeviceSeries, Interval, Knee, LaunchUse, RunResult
from vitscale.config.runspec import RunSpec
from vitscale.statistics import interval


class Terms(NamedTuple):
    """What the study says of money and aims."""

    price_per_hour: float | None
    target_accuracy: float | None

    @classmethod
    def of(cls, resolved: Mapping[str, Any]) -> Terms:
        """From `resolved.json`; what is not a number there is not told."""
        return cls(_number(resolved, "hardware", "price_per_hour"), _number(resolved, "train", "target_accuracy"))


def devices(study: StudyData, results: Sequence[RunResult]) -> Devices:
    """Of a whole study."""
    return Devices(
        launches=tuple(
            LaunchUse(run.run_id, one.record.launch, one.devices)
            for run in study.runs
            for one in run.counted
            if one.devices is not None
        ),
        series=tuple(series for run in study.runs for series in _first_series(run)),
        knees=knees(results),
    )


def costs(run: Run, images_per_s: Interval | None, terms: Terms) -> Costs:
    """Figures of one run; what a term or a sensor does not tell is None."""
    powers = [one.devices.power_w for one in run.counted if one.devices and one.devices.power_w]
    rates = [
        one.images_per_s / one.devices.power_w
        for one in run.counted
        if one.devices and one.devices.power_w and one.images_per_s
    ]
    images = _images_per_epoch(run)
    images_per_joule = _interval(rates)
    epoch_s = _over(images, images_per_s)
    price_per_s = None if terms.price_per_hour is None else terms.price_per_hour / 3600 * run.facts.world_size
    target_s = _time_to_target(run.counted, terms.target_accuracy)
    return Costs(
        power_w=_interval(powers),
        images_per_joule=images_per_joule,
        epoch_s=epoch_s,
        energy_per_epoch_j=_over(images, images_per_joule),
        cost_per_epoch=_times(epoch_s, price_per_s),
        time_to_target_s=target_s,
        energy_to_target_j=None if target_s is None or not powers else target_s * median(powers),
        cost_to_target=None if target_s is None or price_per_s is None else target_s * price_per_s,
    )


def knees(results: Sequence[RunResult]) -> tuple[Knee, ...]:
    """The knee of each series, by the medians of its valid runs; of runs equally good the smaller."""
    by_series: dict[str, list[tuple[RunResult, float]]] = {}
    for result in results:
        if result.valid and result.images_per_s is not None:
            product = result.world_size / result.images_per_s.median**2
            by_series.setdefault(result.series, []).append((result, product))
    found = []
    for series, runs in by_series.items():
        sizes = {result.world_size for result, _ in runs}
        if len(sizes) > 1:
            best, _ = min(runs, key=lambda one: (one[1], one[0].world_size))
            found.append(Knee(series, best.run_id, best.world_size, best.world_size < max(sizes)))
    return tuple(found)


def _first_series(run: Run) -> list[DeviceSeries]:
    first = next((one.record for one in run.counted if one.record.samples), None)
    if first is None:
        return []
    found = readings(first.samples)
    return [DeviceSeries(run.run_id, first.launch, device, tuple(read)) for device, read in found.items()]


def _images_per_epoch(run: Run) -> int | None:
    return run.spec.data.images if isinstance(run.spec, RunSpec) else run.spec.images_per_epoch


def _time_to_target(launches: Sequence[LaunchFigures], target: float | None) -> float | None:
    """Training time to the first evaluation at the target, median; None unless every launch reached it."""
    if target is None or not launches:
        return None
    times = []
    for one in launches:
        reached = (scored for scored in one.record.evaluations if (scored.test_accuracy or 0.0) >= target)
        first = next(reached, None)
        if first is None or first.seconds is None:
            return None
        times.append(first.seconds)
    return median(times)


def _interval(values: Sequence[float]) -> Interval | None:
    if not values:
        return None
    found = interval(values)
    return Interval(median=found.median, low=found.low, high=found.high)


def _times(value: Interval | None, factor: float | None) -> Interval | None:
    if value is None or factor is None:
        return None
    low, high = (None if end is None else end * factor for end in (value.low, value.high))
    return Interval(median=value.median * factor, low=low, high=high)


def _over(amount: float | None, rate: Interval | None) -> Interval | None:
    """An amount over a rate: the ends change places."""
    if amount is None or rate is None:
        return None
    low, high = (None if end is None else amount / end for end in (rate.high, rate.low))
    return Interval(median=amount / rate.median, low=low, high=high)


def _number(resolved: Mapping[str, Any], table: str, key: str) -> float | None:
    values = resolved.get(table)
    value = values.get(key) if isinstance(values, Mapping) else None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value > 0 else None
