"""What training takes: power, energy and money, per epoch and to the target accuracy, and where more stops paying.

Energy is that of the devices alone (`devices.py`). Cost is `hardware.price_per_hour` times devices times time.

The **knee** of a series is the world size at which time and cost per image, multiplied, are least: from any smaller one
to it the time falls by a larger factor than the cost rises, and from it to any larger one by a smaller factor. For a
doubling the border is a gain of sqrt(2), 71 % of what two devices could give. Time per image is 1 / images_per_s and
cost goes with N / images_per_s, so that the knee is where N / images_per_s^2 is least, whatever the price.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from vitscale.analysis.devices import readings
from vitscale.analysis.load import Run, StudyData
from vitscale.analysis.result import Costs, Devices, DeviceSeries, Interval, Knee, LaunchUse, RunResult
from vitscale.statistics import interval


def price_per_s(resolved: Mapping[str, Any]) -> float | None:
    """Price of a device for a second, from `hardware.price_per_hour`; None where the study does not tell it."""
    hardware = resolved.get("hardware")
    price = hardware.get("price_per_hour") if isinstance(hardware, Mapping) else None
    return price / 3600 if isinstance(price, float) and price > 0 else None


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


def costs(run: Run, epoch_s: Interval | None, time_to_accuracy_s: Interval | None, price: float | None) -> Costs:
    """Figures of one run; what is not measured or told is None. `price` is that of a device for a second."""
    told = [(one.devices.power_w, one.images_per_s) for one in run.counted if one.devices and one.devices.power_w]
    powers = [power for power, _ in told]
    images_per_joule = _interval([rate / power for power, rate in told if rate])
    total_price = None if price is None else price * run.facts.world_size
    return Costs(
        power_w=_interval(powers),
        images_per_joule=images_per_joule,
        energy_per_epoch_j=_over(run.facts.images_per_epoch, images_per_joule),
        cost_per_epoch=_times(epoch_s, total_price),
        energy_to_accuracy_j=_times(time_to_accuracy_s, median(powers) if powers else None),
        cost_to_accuracy=_times(time_to_accuracy_s, total_price),
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
