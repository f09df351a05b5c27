"""What a series must not say, and what is worth saying of it."""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby, pairwise

from vitscale.cost.step import UTILISATION
from vitscale.cost.vit import training_flop
from vitscale.errors import UsageError
from vitscale.predict.memory import shape_of
from vitscale.predict.priors import find_device
from vitscale.predict.series import Observation, Series

_REPEAT_FACTOR = 2.0
_UNIT_FACTOR = 300.0


def checked(series: Series) -> Series:
    """The series with what was noticed.

    Raises:
        UsageError: repeats that disagree by more than a factor of 2, or of a table times in another unit than seconds.
    """
    if series.source == "imported":
        _one_unit(series)
        _against_the_peak(series)
    return replace(series, remarks=(*series.remarks, *_repeats(series)))


def _repeats(series: Series) -> list[str]:
    told = []
    for layout, group in groupby(sorted(series.measured, key=_place), key=_place):
        times = sorted(one.step_s for one in group if one.step_s is not None)
        if len(times) < 2:
            continue
        where = f"{layout[0]} ranks on {layout[1]} node{'s' * (layout[1] > 1)}"
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
                f"series `{series.name}`: a step of {slow.layout.world_size} ranks takes {slow.step_s:g}, of "
                f"{fast.layout.world_size} ranks {fast.step_s:g}, for similar work of a rank",
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
        told = f"series `{series.name}`, {one.layout.world_size} ranks: {one.step_s:g} s a step is"
        if rate > 1.5 * fastest:
            raise UsageError(f"{told} faster than {device.name} computes at its peak", "times are in seconds")
        if rate < 1e-3 * peak and one.layout.world_size == 1 and micro_step_s >= 1:
            hint = f"if it is milliseconds, write {one.step_s / 1000:g}; else leave `device` blank"
            raise UsageError(f"{told} {rate / peak:.3%} of the peak of {device.name}", hint)
