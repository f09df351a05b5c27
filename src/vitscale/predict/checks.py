"""What a series must not say, and what is worth saying of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby, pairwise

from vitscale.cost.scaling import Layout
from vitscale.cost.step import UTILISATION
from vitscale.cost.vit import training_flop
from vitscale.errors import UsageError
from vitscale.hardware import catalog
from vitscale.predict.memory import shape_of
from vitscale.predict.priors import find_device
from vitscale.predict.series import Observation, Series, place
from vitscale.units import ranks

_REPEAT_FACTOR = 2.0
_UNIT_FACTOR = 300.0
_LONGEST_MICRO_STEP_S = 60.0


def checked(series: Series) -> Series:
    """The series with what was noticed.

    Raises:
        UsageError: repeats that disagree by more than a factor of 2, or of a table times in another unit than seconds.
    """
    noticed = [*_repeats(series), *_mixed_work(series)]
    if series.source == "imported":
        _one_unit(series)
        _against_the_peak(series)
        noticed += _slow(series)
    return replace(series, remarks=(*series.remarks, *noticed))


def _mixed_work(series: Series) -> list[str]:
    """Neither a rank's images nor all ranks' are the same: several protocols in one series, or none."""
    own = [one.layout for one in series.measured]
    works = {at.micro_batch * at.grad_accum for at in own}
    if series.protocol is not None or not series.batch_told or len({at.world_size for at in own}) < 2:
        return []
    if len(works) < 2 or len({round(at.global_batch, 6) for at in own}) < 2:
        return []
    return [
        "neither the images of a rank nor the global batch stay the same: protocols may be mixed; what is asked has "
        "the batch of the largest world size"
    ]


def _repeats(series: Series) -> list[str]:
    told = []
    for layout, group in groupby(sorted(series.measured, key=_place), key=_place):
        times = sorted(one.step_s for one in group if one.step_s is not None)
        if len(times) < 2:
            continue
        where = place(Layout(*layout))
        if times[-1] > _REPEAT_FACTOR * times[0]:
            raise UsageError(
                f"series `{series.name}` tells {where} {len(times)} times, {times[0]:.4g} to {times[-1]:.4g} s a step",
                "runs that differ by more than a factor of 2 are not the same run: give one its own series",
            )
        spread = times[-1] / times[0] - 1
        told.append(f"{where} was told {len(times)} times, {spread:.1%} apart: all are kept as launches")
    return told


def _place(one: Observation) -> tuple[int, int, float, int]:
    return one.layout.world_size, one.layout.nodes, one.layout.micro_batch, one.layout.grad_accum


def _one_unit(series: Series) -> None:
    """Between neighbouring world sizes a step, and a step per image of a rank, differ by 300 only where units do."""
    for pair in pairwise(series.measured):
        fast, slow = sorted(pair, key=_per_image)
        assert fast.step_s is not None
        assert slow.step_s is not None
        if slow.step_s > _UNIT_FACTOR * fast.step_s and _per_image(slow) > _UNIT_FACTOR * _per_image(fast):
            raise UsageError(
                f"series `{series.name}`: a step of {ranks(slow.layout.world_size)} takes {slow.step_s:g}, of "
                f"{ranks(fast.layout.world_size)} {fast.step_s:g}, for similar work of a rank",
                "are some of the times in milliseconds? Times are in seconds",
            )


def _per_image(one: Observation) -> float:
    assert one.step_s is not None
    return one.step_s / (one.layout.micro_batch * one.layout.grad_accum)


def _against_the_peak(series: Series) -> None:
    """A thousand times too slow or too fast for the device is a unit, not a measurement.

    A micro-step of less than a second is never too slow: no training step takes less than a millisecond.
    """
    device, shape = find_device(series.device), shape_of(series)
    precision = series.precision or "fp32"
    peak = device.peak(precision) if device and precision in UTILISATION else None
    if device is None or peak is None or shape is None or not series.batch_told:
        return
    # Tensor cores compute fp32 as TF32 where they are let.
    fastest = max(device.peak_flop_per_s.values())
    for one in series.measured:
        assert one.step_s is not None
        rate, micro_step_s = training_flop(shape) / _per_image(one), one.step_s / one.layout.grad_accum
        told = f"series `{series.name}`, {ranks(one.layout.world_size)}: {one.step_s:g} s a step is"
        if rate > 1.5 * fastest:
            raise UsageError(f"{told} faster than {device.name} computes at its peak", "times are in seconds")
        if rate < 1e-3 * peak and one.layout.world_size == 1 and micro_step_s >= 1:
            hint = f"if it is milliseconds, write {one.step_s / 1000:g}; else leave `device` blank"
            raise UsageError(f"{told} {rate / peak:.3%} of the peak of {device.name}", hint)


def _slow(series: Series) -> list[str]:
    """Steps of a whole table that would be plausible in milliseconds; slow machines have such too, so it is only said.

    Of the smallest world size on one node, where no network explains it: below a thousandth of the device's peak, of a
    device that is not known below a hundredth of the slowest one's, and without either longer than a minute. CPUs
    may be as slow as any of it.
    """
    own = [one for one in series.measured if one.layout.nodes == 1 and series.device != catalog.CPU]
    one = min(own, key=lambda each: each.layout.world_size, default=None)
    micro_step_s = 0.0 if one is None or one.step_s is None else one.step_s / one.layout.grad_accum
    if one is None or micro_step_s < 1:
        return []
    (limit, than), shape = _least_flop_per_s(series), shape_of(series)
    if limit is None or shape is None:
        too_slow, than = micro_step_s > _LONGEST_MICRO_STEP_S, "longer than a minute for one micro-batch"
    else:
        rate = training_flop(shape) / _per_image(one)
        too_slow, than = rate < limit, f"{rate / 1e9:.3g} GFLOP/s of a rank, below {than}"
    at = f"{one.step_s:g} s a step at {ranks(one.layout.world_size)}"
    return [f"{at} is {than}: if times are in milliseconds, divide them by 1,000"] if too_slow else []


def _least_flop_per_s(series: Series) -> tuple[float | None, str]:
    """What a GPU computes at least, with its words; None where nothing tells."""
    precision, device = series.precision or "fp32", find_device(series.device)
    if not series.batch_told:
        return None, ""
    if device is not None:
        peak = device.peak(precision)
        return (None, "") if peak is None else (1e-3 * peak, f"a thousandth of the peak of {device.name}")
    peaks = {name: catalog.device(name).peak(precision) for name in catalog.names()}
    known = {name: peak for name, peak in peaks.items() if peak is not None}
    if not known:
        return None, ""
    slowest = min(known, key=lambda name: known[name])
    return 1e-2 * known[slowest], f"a hundredth of the peak of {slowest} (of a CPU write cpu as the device)"
