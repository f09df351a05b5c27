"""What an asked layout takes: energy of its devices and money, with the intervals of its step.

1. Power of a device is the measured one: a GPU's board, or on CPUs the packages of a host, by their counters over the
   steady window. Taken as the same at other layouts, with a log standard deviation of what the runs differ by and of
   `LEAST_LOG_SD` at least: ranks that wait take less than ranks that compute, and how much is not modelled.
2. Where none was measured, the board's own limit in the catalog stands for it: an upper bound, and said to be one.
3. Cost is the price of a device for an hour, times ranks, times time. The rest of the machines is in neither.
4. A training is its steps, with checkpoints as often as Daly has it and what failures cost, see `cost.failures`: a
   factor on the time of its steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median, stdev

import numpy as np

from vitscale import units
from vitscale.cost import failures
from vitscale.cost.optimizers import moment_elements
from vitscale.cost.scaling import Array, Layout
from vitscale.cost.vit import parameters
from vitscale.predict.draws import normals
from vitscale.predict.memory import optimizer_of, shape_of
from vitscale.predict.priors import find_device
from vitscale.predict.result import Quantiles, Spending, quantiles
from vitscale.predict.series import UNTOLD_BATCH, Asked, Observation, Series

LEAST_LOG_SD = 0.1
_UNTOLD_EPOCH = "the images of an epoch are not told"
_BY_IMAGE = ("energy_per_image_j", "cost_per_million_images", "cost_per_epoch", "training_s")


@dataclass(frozen=True)
class Rates:
    """What a device takes in a second, and what a training has; None is not known, `reasons` has why."""

    power_w: float | None
    """Of one GPU, or on CPUs of one host."""
    power_log_sd: float
    bound: bool
    """Whether the power is the board's limit, not a measurement."""
    price_per_s: float | None
    """Of one device."""
    epochs: float | None
    """Of a training."""
    checkpoint_bytes: float | None
    reasons: dict[str, str]
    assumptions: tuple[str, ...]


def rates(series: Series, asked: Asked) -> Rates:
    """Of the asked configuration of a series."""
    reasons: dict[str, str] = {}
    power, log_sd, bound, told = _power(series, asked)
    if power is None:
        reasons |= dict.fromkeys(("energy_per_step_j", "energy_per_image_j"), told)
    assumptions = [] if power is None else [told]
    price, why = _price(series, asked)
    if price is None:
        reasons |= dict.fromkeys(("cost_per_million_images", "cost_per_epoch"), why)
    else:
        assumptions.append(why)
        if _epoch(series, asked, 1) is None:
            reasons["cost_per_epoch"] = _UNTOLD_EPOCH
    epochs, kept_bytes, lacking = _training(series, asked)
    if lacking is None:
        assumptions.append(f"{epochs:g} epochs; {failures.ASSUMED}")
    else:
        reasons["training_s"] = lacking
    if not series.batch_told:
        reasons |= dict.fromkeys(_BY_IMAGE, UNTOLD_BATCH)
    price_per_s = None if price is None else price / 3600
    return Rates(power, log_sd, bound, price_per_s, epochs, kept_bytes, reasons, tuple(assumptions))


def spending(series: Series, asked: Asked, known: Rates, layout: Layout, step_s: Array) -> Spending:
    """Of one layout, by draws of its step in seconds."""
    energy_j = cost = None
    if known.power_w is not None:
        spread = np.exp(known.power_log_sd * normals("power", step_s.shape))
        energy_j = known.power_w * _devices(series, asked, layout) * spread * step_s
    if known.price_per_s is not None and series.batch_told:
        cost = known.price_per_s * layout.world_size * step_s / layout.global_batch
    epoch = _epoch(series, asked, layout.world_size)
    return Spending(
        None if energy_j is None else quantiles(energy_j),
        None if energy_j is None or not series.batch_told else quantiles(energy_j / layout.global_batch),
        None if cost is None else quantiles(1e6 * cost),
        None if cost is None or epoch is None else quantiles(epoch * cost),
        _training_s(known, layout, None if epoch is None else epoch / layout.global_batch, step_s),
        known.bound,
    )


def _training(series: Series, asked: Asked) -> tuple[float | None, float | None, str | None]:
    """Epochs and the bytes of a checkpoint, or why there is no training time."""
    epochs, shape, optimizer = asked.epochs or series.epochs, shape_of(series), optimizer_of(series)
    if not series.batch_told:
        return None, None, UNTOLD_BATCH
    if _epoch(series, asked, 1) is None:
        return None, None, _UNTOLD_EPOCH
    if epochs is None:
        return None, None, "no epochs are told: epochs=90, or `train.epochs` of the study"
    if shape is None or optimizer is None:
        return None, None, "what a checkpoint takes is not known: no timm ViT, or an optimizer without a form"
    return epochs, 4.0 * (parameters(shape) + moment_elements(shape, optimizer)), None


def _training_s(known: Rates, layout: Layout, epoch_steps: float | None, step_s: Array) -> Quantiles | None:
    """Of draws of the step; `epoch_steps` are the steps of an epoch."""
    if known.epochs is None or known.checkpoint_bytes is None or epoch_steps is None:
        return None
    factor = failures.training_time(1.0, layout.world_size, known.checkpoint_bytes, layout.nodes).wall_s
    return None if factor is None else quantiles(known.epochs * epoch_steps * factor * step_s)


def _power(series: Series, asked: Asked) -> tuple[float | None, float, bool, str]:
    """Watts of a device, their log standard deviation, whether they are a bound, and the assumption or the reason."""
    seen = [one.power_w / _places(series.device, one) for one in series.measured if one.power_w]
    if seen and asked.device in (None, series.device):
        logs = [math.log(one) for one in seen]
        log_sd = max(LEAST_LOG_SD, stdev(logs) if len(logs) > 1 else 0.0)
        of = "a host's CPUs" if series.device == "cpu" else "a GPU"
        return median(seen), log_sd, False, f"{of} take {median(seen):,.0f} W, as measured at {_sizes(series)}"
    name = asked.device or series.device
    device = find_device(name)
    if device is None:
        return (
            None,
            0.0,
            False,
            f"no power was measured, and `{name or 'a device without a name'}` has none in the catalog",
        )
    return (
        device.board_power_w,
        0.0,
        True,
        f"energy is at most this: {device.board_power_w:,.0f} W, the limit of {device.title}",
    )


def _sizes(series: Series) -> str:
    *others, last = sorted({one.layout.world_size for one in series.measured if one.power_w})
    return ", ".join([*(f"{size:,}" for size in others), units.ranks(last)])


def _price(series: Series, asked: Asked) -> tuple[float | None, str]:
    if asked.price_per_hour is not None:
        return asked.price_per_hour, f"{asked.price_per_hour:g} for a device and an hour, as asked"
    if series.price_per_hour is None:
        return None, "no price is told: price_per_hour=2.5, or `hardware.price_per_hour` of the study"
    if asked.device not in (None, series.device):
        return None, f"the study's price is not that of {asked.device}: price_per_hour=2.5"
    return series.price_per_hour, f"{series.price_per_hour:g} for a device and an hour, as the study has it"


def _places(device: str | None, one: Observation) -> int:
    return one.layout.nodes if device == "cpu" else one.layout.world_size


def _devices(series: Series, asked: Asked, layout: Layout) -> int:
    return layout.nodes if (asked.device or series.device) == "cpu" else layout.world_size


def _epoch(series: Series, asked: Asked, world_size: int) -> float | None:
    """Images of an epoch: those of a rank in weak scaling, else of the data set."""
    weak = (asked.protocol or series.protocol) == "weak"
    told = [(one.images_per_epoch, one.layout.world_size) for one in series.observations if one.images_per_epoch]
    if not told or weak != (series.protocol == "weak"):
        return None
    if not weak and len({images for images, _ in told}) > 1:
        return None
    images, ranks = max(told)
    return images / ranks * world_size if weak else images
