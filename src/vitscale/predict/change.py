"""What another device, precision, engine, stage or link changes in calibrated mechanisms.

Each change scales what it is known to scale, and widens the interval by a stated amount; what it is not known to change
stays as fitted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vitscale.config.study import rate_bytes_per_s
from vitscale.cost.scaling import Array, Schedule, schedule
from vitscale.cost.step import UTILISATION
from vitscale.cost.vit import PRECISION_BYTES
from vitscale.errors import UsageError
from vitscale.hardware import catalog
from vitscale.hardware.catalog import DeviceSpec
from vitscale.predict.memory import parameter_count
from vitscale.predict.priors import PARAMETERS, find_device, sheet_micro_step_s
from vitscale.predict.series import Asked, Series

_DEVICE_LOG_SD = 0.25
_PRECISION_LOG_SD = 0.2
_ENGINE_LOG_SD = 0.1
_LINK_LOG_SD = 0.05


@dataclass(frozen=True)
class Change:
    """How the asked configuration differs from the calibrated one."""

    series: Series
    """With the asked settings."""
    plan: Schedule
    log_scale: float
    """ln of the asked reference micro-step over the calibrated one."""
    factors: dict[str, float]
    """On parameters, by name."""
    values: dict[str, float]
    """Parameters that are known instead of fitted."""
    log_sds: dict[str, float]
    """Log standard deviations that it widens by, by what they are of: another device, precision, engine or link."""
    assumptions: tuple[str, ...]
    any: bool

    @property
    def log_sd(self) -> float:
        """All of them together."""
        return float(np.sqrt(sum(sd**2 for sd in self.log_sds.values())))

    def parameters(self, theta: Array) -> Array:
        """Calibrated draws as draws of the asked configuration."""
        changed_draws = theta.copy()
        for name, factor in self.factors.items():
            changed_draws[:, PARAMETERS.index(name)] *= factor
        for name, value in self.values.items():
            changed_draws[:, PARAMETERS.index(name)] = value
        return changed_draws


def changed(series: Series, asked: Asked, micro_step_s: float) -> Change:
    """Derive the change.

    Args:
        series: the calibrated one.
        asked: what differs.
        micro_step_s: fitted median of its reference micro-step.

    Raises:
        UsageError: a device without figures, or a link where the model's bytes are not known.
    """
    keys = ("protocol", "engine", "zero_stage", "precision", "device")
    names: dict[str, Any] = {key: getattr(asked, key) for key in keys}
    wanted = replace(series, **{key: value for key, value in names.items() if value is not None})
    speed, told, log_sds = 1.0, [], {}
    factors: dict[str, float] = {}
    if (wanted.device, wanted.precision) != (series.device, series.precision):
        speed, links, spread = _machine(series, wanted)
        log_sds[str(wanted.device if wanted.device != series.device else wanted.precision)] = spread
        # Seconds over a micro-step that became `speed` times shorter; a link without two figures stays as it was.
        bytes_ratio = _bytes(wanted) / _bytes(series)
        factors = {"update": speed / links.get("update", 1.0), "hop": speed}
        factors |= {name: bytes_ratio * speed / links.get(name, 1.0) for name in ("intra_node", "inter_node")}
        told.append(f"compute is {speed:.2f} times as fast, by data sheets; not measured")
        same = [name.replace("_", " ") for name in ("intra_node", "inter_node") if name not in links]
        if same and wanted.device != series.device:
            told.append(f"{' and '.join(same)} link: no figures of both devices, taken as equally fast")
    if (wanted.engine, wanted.zero_stage) != (series.engine, series.zero_stage):
        log_sds[f"{wanted.engine} {wanted.zero_stage}"] = _ENGINE_LOG_SD
        told.append("engine or stage was not measured: what it sends and hides is by its documentation")
    values: dict[str, float] = {}
    if asked.link is not None:
        values |= {"inter_node": _link_ratio(wanted, asked.link, micro_step_s / speed), "contention": 0.0}
        log_sds[asked.link] = _LINK_LOG_SD
        told.append(f"network: {asked.link} of each node at its full rate, 2 bytes sent for each byte of gradients")
    plan = schedule(wanted.engine, wanted.zero_stage, wanted.knobs, on_cpu=wanted.device == "cpu")
    scale = -float(np.log(speed))
    return Change(wanted, plan, scale, factors, values, log_sds, tuple(told), asked.any)


def _bytes(series: Series) -> int:
    return PRECISION_BYTES.get(series.precision or "fp32", 4)


def _machine(series: Series, wanted: Series) -> tuple[float, dict[str, float], float]:
    """Speed-up of compute, ratios of bandwidths, and the log standard deviation of a change of device or precision."""
    new = find_device(wanted.device) or catalog.device(wanted.device or "")
    old = find_device(series.device)
    if old is None:
        raise UsageError(
            f"another device or precision cannot be told from one without figures (`{series.device}`)",
            "measure one run on the device asked for",
        )
    speed = _rate(new, wanted.precision) / _rate(old, series.precision)
    micro_batch = max(one.layout.micro_batch for one in series.measured or series.observations)
    ends_s = sheet_micro_step_s(series, old, micro_batch), sheet_micro_step_s(wanted, new, micro_batch)
    if ends_s[0] is not None and ends_s[1] is not None:
        speed = ends_s[0] / ends_s[1]
    links = {"update": new.memory_bytes_per_s / old.memory_bytes_per_s}
    for name in ("intra_node", "inter_node"):
        ends = getattr(new, name), getattr(old, name)
        if ends[0] is not None and ends[1] is not None:
            links[name] = ends[0].bytes_per_s / ends[1].bytes_per_s
    same = wanted.device == series.device
    return speed, links, _PRECISION_LOG_SD if same else _DEVICE_LOG_SD


def _rate(device: DeviceSpec, precision: str | None) -> float:
    name = precision or "fp32"
    peak = device.peak("bf16" if name.startswith("bf16") else name)
    if peak is None:
        raise UsageError(f"no {name} peak of {device.name} is known", f"known: {', '.join(device.peak_flop_per_s)}")
    return peak * UTILISATION.get(name, UTILISATION["fp32"])


def _link_ratio(series: Series, link: str, micro_step_s: float) -> float:
    count = parameter_count(series)
    if count is None:
        raise UsageError(f"`link` needs the bytes of the gradients, and `{series.model}` is no timm ViT")
    return 2 * count * _bytes(series) / rate_bytes_per_s(link) / micro_step_s
