"""Model FLOP utilisation: the training FLOP of the images a run takes per second, over what its devices could do.

The FLOP are the exact matrix products of forward and backward (`cost/vit.py`), of the model and not of the machine:
accumulation, parallelism and what is computed again do not change them. The peak is the dense one that the device's
maker states for the precision; where none is known, that of the matrix products each rank timed on its very device.
"""

from __future__ import annotations

from statistics import fmean
from typing import NamedTuple

from vitscale.analysis.load import Run
from vitscale.analysis.result import Interval
from vitscale.config.runspec import RunSpec
from vitscale.cost.models import shape
from vitscale.cost.vit import training_flop
from vitscale.hardware import catalog
from vitscale.records.layers import LayerRecord
from vitscale.statistics import Estimate
from vitscale.units import decimal


class Peak(NamedTuple):
    """What one device could do at best."""

    flop_per_s: float | None
    reason: str
    """Where the figure is from, or why there is none."""


def utilisation(run: Run, images_per_s: Estimate | None) -> tuple[Interval | None, str | None]:
    """MFU of a run and where its peak is from, or None and why."""
    if run.source != "measured" or not isinstance(run.spec, RunSpec):
        return None, f"{run.source}, not measured"
    if images_per_s is None:
        return None, "no throughput"
    peak = peak_of(run, run.spec.precision)
    if peak.flop_per_s is None:
        return None, peak.reason
    flop = training_flop(shape(run.spec.model.name, **run.spec.model.sizes))
    scale = flop / (run.facts.world_size * peak.flop_per_s)
    low, high = (None if end is None else end * scale for end in (images_per_s.low, images_per_s.high))
    return Interval(median=images_per_s.median * scale, low=low, high=high), peak.reason


def peak_of(run: Run, precision: str) -> Peak:
    """Dense peak of the run's devices, which are of one kind where a run is valid."""
    names = run.device_names
    precision = "bf16" if precision == "bf16_autocast" else precision  # products are in bf16
    found = catalog.match(names[0]) if len(names) == 1 else None
    stated = found.peak(precision) if found else None
    timed = _timed(run)
    if found is not None and stated is not None:
        reached = f"; matrix products timed on it reach {decimal(timed, 'FLOP/s')}" if timed else ""
        return Peak(stated, f"of {decimal(stated, 'FLOP/s')} dense {precision} a device ({found.source}){reached}")
    if timed is not None:
        return Peak(timed, f"of {decimal(timed, 'FLOP/s')} a device, a matrix product timed on it")
    if len(names) != 1:
        return Peak(None, "the devices are not of one kind" if names else "no device is recorded")
    return Peak(None, f"no {precision} peak of {names[0]} is known" if found else f"no peak of {names[0]} is known")


def layers(run: Run) -> tuple[LayerRecord, ...]:
    """Forward passes by class of layer, of the first launch that counts and timed them."""
    return next((one.record.layers for one in run.counted if one.record.layers), ())


def _timed(run: Run) -> float | None:
    """Mean over the ranks and launches, in FLOP/s; None where one of them timed no product."""
    timed = [device.gemm_peak_flop_per_s for device in run.devices]
    known = [peak for peak in timed if peak is not None]
    return fmean(known) if known and len(known) == len(timed) else None
