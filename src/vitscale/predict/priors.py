"""What is believed of each mechanism before the series at hand is looked at.

A prior is log-normal: a median and the standard deviation of its logarithm. Where device, link and model are known the
medians of compute and communication come from data sheets (`hardware/catalog.toml`), else from what published series
show; `docs/concepts/prediction.md` says from which, and how they were chosen without looking at the table that judges.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vitscale.cost import models
from vitscale.cost.scaling import MECHANISMS, Array, Mechanisms
from vitscale.cost.step import UTILISATION
from vitscale.cost.vit import PRECISION_BYTES, training_flop
from vitscale.cost.vit import parameters as model_parameters
from vitscale.errors import VitscaleError
from vitscale.hardware import catalog
from vitscale.hardware.catalog import DeviceSpec
from vitscale.predict.series import Series

NOISE = ("noise", "drift")
"""Parameters of what the mechanisms do not explain: launch-to-launch noise of the step time, and the drift per root of
a doubling of the world size (a random walk in log2 N), both as standard deviations of a logarithm."""

PARAMETERS = (*MECHANISMS, *NOISE)

# Median and log standard deviation, ratios to the reference micro-step.
GENERIC: Mapping[str, tuple[float, float]] = {
    "fixed_share": (0.08, 1.0),
    "update": (0.02, 1.0),
    "intra_node": (0.03, 1.2),
    "inter_node": (0.12, 1.2),
    "hop": (3e-4, 1.2),
    "contention": (0.1, 0.8),
    "exposed_floor": (0.3, 0.6),
    "jitter": (0.006, 0.9),
    "noise": (0.007, 0.8),
    "drift": (0.008, 0.7),
}

BOARD_NOISE = (0.048, 0.6)
"""Noise of boards that no maker's server holds (PCIe cards, workstations): they share fans and power with what is
beside them, and slow down when hot. Three runs of one configuration on 8 T4: 0.6 to 16 % apart."""

_GUESSED_BATCH = 3.0
"""How much more a step drifts where the work of a rank is a guess."""
_LINK_EFFICIENCY = 0.7  # of a data sheet's bandwidth at large messages: nccl-tests tables, median of 19
_KNOWN_LOG_SD = 0.7
_RATE_LOG_SD = 0.3


@dataclass(frozen=True)
class Priors:
    """Log-normal priors of all parameters (`fixed_share`: its odds), and of the reference micro-step in seconds."""

    median: Array
    """In the order of `PARAMETERS`."""
    log_sd: Array
    micro_step_s: float | None
    """None: nothing is known; the data alone tell."""
    micro_step_log_sd: float
    assumptions: tuple[str, ...]

    def parameters(self, z: Array) -> Array:
        """Standard normal coordinates (draws, parameters) as parameters."""
        values = self.median * np.exp(self.log_sd * z)
        values[..., 0] = values[..., 0] / (1 + values[..., 0])
        values[..., PARAMETERS.index("exposed_floor")] = np.minimum(1, values[..., PARAMETERS.index("exposed_floor")])
        return values


def mechanisms(parameters: Array) -> Mechanisms:
    """Columns of drawn parameters by their names."""
    return Mechanisms(*(parameters[..., index] for index in range(len(MECHANISMS))))


def priors(series: Series, reference_micro_batch: float) -> Priors:
    """The priors of a series, for a reference micro-step of that many images."""
    table = dict(GENERIC)
    told: list[str] = []
    device = find_device(series.device)
    if device is not None and device.devices_per_node is None:
        table["noise"] = BOARD_NOISE
    if not series.batch_told:
        table["drift"] = (_GUESSED_BATCH * table["drift"][0], table["drift"][1])
    micro_s = _micro_step_s(series, device, reference_micro_batch, told)
    if micro_s is not None and device is not None:
        table |= _known(series, device, micro_s, told)
    names = [table[name] for name in PARAMETERS]
    median = np.array([one[0] for one in names])
    return Priors(median, np.array([one[1] for one in names]), micro_s, _RATE_LOG_SD, tuple(told))


def find_device(name: str | None) -> DeviceSpec | None:
    """A device by its short name or the name NVML reports, or None."""
    if not name:
        return None
    return catalog.match(name) or (catalog.device(name) if name.lower() in catalog.names() else None)


def _micro_step_s(series: Series, device: DeviceSpec | None, micro_batch: float, told: list[str]) -> float | None:
    if device is None:
        what = "no device is told" if not series.device else f"`{series.device}` is not in the catalog of devices"
        told.append(f"{what}: nothing is taken from a data sheet, so intervals are wider")
        return None
    precision = series.precision or "fp32"
    rate = device.peak_flop_per_s.get("bf16" if precision.startswith("bf16") else precision)
    flop = _training_flop(series)
    if rate is None or flop is None:
        missing = f"the catalog has no {precision} peak of {device.name}" if rate is None else _UNKNOWN_MODEL
        told.append(f"{missing}: compute is known from the measured steps only")
        return None
    return micro_batch * flop / (rate * UTILISATION.get(precision, UTILISATION["bf16"]))


_UNKNOWN_MODEL = "the model is no timm ViT"


def _training_flop(series: Series) -> int | None:
    try:
        sizes = {"img_size": series.img_size, "patch_size": series.patch_size}
        shape = models.shape(series.model or "", **{key: value for key, value in sizes.items() if value})
    except VitscaleError:
        return None
    return training_flop(shape)


def _known(series: Series, device: DeviceSpec, micro_s: float, told: list[str]) -> dict[str, tuple[float, float]]:
    """Priors by bytes over data-sheet bandwidths, for the mechanisms where both are known."""
    shape = models.shape(series.model or "")
    count = model_parameters(shape)
    sent_bytes = 2 * count * PRECISION_BYTES.get(series.precision or "fp32", 4)
    ranks = max((round(one.layout.world_size / one.layout.nodes) for one in series.observations), default=1)
    links = device.links(ranks)
    known = {"update": (28 * count / device.memory_bytes_per_s / micro_s, 0.7)}
    for name, link in (("intra_node", links.intra_node), ("inter_node", links.inter_node)):
        if link is not None:
            known[name] = (sent_bytes / (link.bytes_per_s * _LINK_EFFICIENCY) / micro_s, _KNOWN_LOG_SD)
            told.append(f"{name.replace('_', ' ')} link: {link.name} at {_LINK_EFFICIENCY:.0%} before it was looked at")
    return known
