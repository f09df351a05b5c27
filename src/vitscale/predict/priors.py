"""What is believed of each mechanism before the series at hand is looked at.

A prior is log-normal: a median and the standard deviation of its logarithm. Where device, link and model are known the
medians of compute and communication come from data sheets (`hardware/catalog.toml`), else from what published series
show; `docs/concepts/prediction.md` says from which, and what leaving a table out shows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from vitscale.cost import compute, recompute
from vitscale.cost.scaling import MECHANISMS, Array, Layout, Mechanisms
from vitscale.cost.vit import PRECISION_BYTES, activation_bytes, training_flop
from vitscale.hardware import catalog
from vitscale.hardware.catalog import DeviceSpec
from vitscale.predict.memory import parameter_count, shape_of
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
    "inter_node": (0.1, 0.9),
    "hop": (3e-4, 1.2),
    "contention": (0.1, 0.8),
    "exposed_floor": (0.3, 0.6),
    "jitter": (0.008, 0.9),
    "noise": (0.007, 0.9),
    "drift": (0.008, 0.7),
}

BOARD_NOISE = (0.05, 0.6)
"""Noise of boards that no maker's server holds (PCIe cards, workstations): they share fans and power with what is
beside them, and slow down when hot. Three runs of one configuration on 8 T4: 0.6 to 16 % apart."""

UNKNOWN_BOARD_SHARE = 0.3
"""Chance that a device of which nothing is known is such a board: then noise is a mixture of both."""

_GUESSED_BATCH = 3.0
"""How much more a step drifts where the work of a rank is a guess."""
_LINK_EFFICIENCY = 0.7  # of a data sheet's bandwidth at large messages: nccl-tests tables, median of 19
_BOARD_NETWORK = (1.25e9, 1.2)
"""Bytes per second of a node of boards that no maker's server holds, and log sd: from office Ethernet to 100 Gbit/s."""
_KNOWN_LOG_SD = 0.7
_TIMED_LOG_SD = 0.15
"""Of a link that was timed, or is shaped to its rate: an engine's calls differ from a benchmark's."""
_RATE_LOG_SD = 0.3
"""Of a data sheet's micro-step where nothing was measured."""
_SEEN_RATE_LOG_SD = 1.5
"""The same once a step was measured: input, launches and clocks can make it many times as long, and the step tells."""
_MOST_NOISE = 0.3
"""Of noise and drift: beyond it two launches of one run would often be a factor of 2 apart, which `checks` refuses."""


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
    board_share: float = 0.0
    """Chance that noise is that of boards, beside a server's."""

    def parameters(self, z: Array) -> Array:
        """Standard normal coordinates (draws, parameters) as parameters."""
        values = self.median * np.exp(self.log_sd * z)
        values[..., 0] = values[..., 0] / (1 + values[..., 0])
        if self.board_share:
            values[..., _NOISE] = _mixed_noise(z[..., _NOISE], self.board_share)
        for name, most in (("exposed_floor", 1.0), *((name, _MOST_NOISE) for name in NOISE)):
            values[..., PARAMETERS.index(name)] = np.minimum(most, values[..., PARAMETERS.index(name)])
        return values


_NOISE = PARAMETERS.index("noise")


def _mixed_noise(z: Array, board_share: float) -> Array:
    """Quantiles of a mixture of a server's noise and that of boards, at standard normal coordinates."""
    logs = np.linspace(math.log(1e-5), math.log(2.0), 2000)
    ends = ((1 - board_share, GENERIC["noise"]), (board_share, BOARD_NOISE))
    below = sum(share * ndtr((logs - math.log(median)) / sd) for share, (median, sd) in ends)
    found: Array = np.exp(np.interp(ndtr(z), below, logs))
    return found


def mechanisms(parameters: Array) -> Mechanisms:
    """Columns of drawn parameters by their names."""
    return Mechanisms(*(parameters[..., index] for index in range(len(MECHANISMS))))


def priors(series: Series, reference_micro_batch: float) -> Priors:
    """The priors of a series, for a reference micro-step of that many images."""
    table = dict(GENERIC)
    device = find_device(series.device)
    told = _ambiguous(series.device, device)
    known = device is not None or series.device == "cpu"
    if device is not None and device.devices_per_node is None:
        table["noise"] = BOARD_NOISE
    if not series.batch_told:
        table["drift"] = (_GUESSED_BATCH * table["drift"][0], table["drift"][1])
    micro_s = _micro_step_s(series, device, reference_micro_batch, told)
    # Bytes over a rate are seconds, and become ratios by the micro-step that was seen, not by a data sheet's.
    seen_micro_s = _seen_micro_s(series, reference_micro_batch) or micro_s
    if seen_micro_s is not None and device is not None:
        table |= _known(series, device, seen_micro_s, told)
    table |= _timed(series, seen_micro_s, told)
    names = [table[name] for name in PARAMETERS]
    median = np.array([one[0] for one in names])
    micro_log_sd = _SEEN_RATE_LOG_SD if series.measured else _RATE_LOG_SD
    log_sd, board_share = np.array([one[1] for one in names]), 0.0 if known else UNKNOWN_BOARD_SHARE
    return Priors(median, log_sd, micro_s, micro_log_sd, tuple(told), board_share)


def find_device(name: str | None) -> DeviceSpec | None:
    """A device by its short name, the name NVML reports, or as people write it; None where it is not in the catalog.

    Of several that a name may mean (`A100`), the one with the least memory.
    """
    if not name:
        return None
    exact = catalog.match(name) or (catalog.device(name) if name.lower() in catalog.names() else None)
    return exact or next(iter(catalog.spelled(name)), None)


def _ambiguous(name: str | None, device: DeviceSpec | None) -> list[str]:
    if device is None or len(catalog.spelled(name or "")) < 2 or device.name == (name or "").lower():
        return []
    return [] if name in device.nvml_names else [f"`{name}` is taken as {device.title}, the one with the least memory"]


def _micro_step_s(series: Series, device: DeviceSpec | None, micro_batch: float, told: list[str]) -> float | None:
    if not series.batch_told:
        told.append("the micro-batch is not told: compute is known from the measured steps only")
        return None
    if device is None:
        what = "no device is told" if not series.device else f"`{series.device}` is not in the catalog of devices"
        told.append(f"{what}: nothing is taken from a data sheet, so intervals are wider")
        return None
    precision = series.precision or "fp32"
    if series.precision is None:
        told.append("precision is not told: taken as fp32")
    if shape_of(series) is None:
        told.append("the model is no timm ViT: compute is known from the measured steps only")
        return None
    found = sheet_micro_step_s(series, device, micro_batch)
    if found is None:
        told.append(f"the catalog has no {precision} peak of {device.name}: compute is known from measured steps only")
    return found


def sheet_micro_step_s(series: Series, device: DeviceSpec, micro_batch: float) -> float | None:
    """Forward and backward of a series' model by a data sheet; None without its shape or a peak in its precision."""
    shape, precision = shape_of(series), series.precision or "fp32"
    if shape is None or precision not in PRECISION_BYTES:
        return None
    flop, images = training_flop(shape), max(1, round(micro_batch))
    kept_bytes = activation_bytes(shape, images, precision, fused_attention=series.knobs.get("sdpa") != "math")
    found = compute.micro_step_seconds(images * flop, kept_bytes, precision=precision, device=device)
    again = recompute.recomputed_flop(shape, 1) / flop if series.knobs.get("activation_checkpointing") else 0.0
    return None if found is None else (1 + again) * found * micro_batch / images


def _seen_micro_s(series: Series, reference: float) -> float | None:
    """The least that a reference micro-step can have taken, by the measured steps."""
    times = [
        one.busy_s / one.layout.grad_accum * reference / one.layout.micro_batch
        for one in series.measured
        if one.busy_s is not None
    ]
    return min(times, default=None)


def _timed(series: Series, micro_s: float | None, told: list[str]) -> dict[str, tuple[float, float]]:
    """Priors of links whose rate is measured or shaped: bytes over it.

    Where every run sends over the link no step tells the micro-step without it, so that the ratio is less sure.
    """
    sent_bytes = _sent_bytes(series)
    if sent_bytes is None or micro_s is None:
        return {}
    found = {}
    for name in ("intra_node", "inter_node"):
        rate = getattr(series.links, name)
        if rate is not None:
            beside = [one for one in series.measured if not _uses(name, one.layout)]
            log_sd = _TIMED_LOG_SD if beside or not series.measured else _KNOWN_LOG_SD
            found[name] = (sent_bytes / rate / micro_s, log_sd)
            told.append(f"{name.replace('_', ' ')} link: {rate / 1e9:.3g} GB/s, as it was timed or shaped")
    return found


def _uses(link: str, layout: Layout) -> bool:
    return layout.nodes > 1 if link == "inter_node" else layout.world_size > layout.nodes


def _sent_bytes(series: Series) -> float | None:
    """What an endless ring sends over a link: 2 bytes a byte of gradients; None where the model is no timm ViT."""
    count = parameter_count(series)
    return None if count is None else 2.0 * count * PRECISION_BYTES.get(series.precision or "fp32", 4)


def _known(series: Series, device: DeviceSpec, micro_s: float, told: list[str]) -> dict[str, tuple[float, float]]:
    """Priors by bytes over data-sheet bandwidths, for the mechanisms where both are known."""
    count, sent_bytes = parameter_count(series), _sent_bytes(series)
    if count is None or sent_bytes is None:
        return {}
    ranks = max((round(one.layout.world_size / one.layout.nodes) for one in series.observations), default=1)
    links = device.links(ranks)
    known = {"update": (28 * count / device.memory_bytes_per_s / micro_s, 0.7)}
    if links.inter_node is None and device.devices_per_node is None:
        rate, log_sd = _BOARD_NETWORK
        known["inter_node"] = (sent_bytes / rate / micro_s, log_sd)
        if any(one.layout.nodes > 1 for one in series.observations):
            told.append(f"network: none is known for {device.name}; 10 Gbit/s, or a third or three times as fast")
    for name, link in (("intra_node", links.intra_node), ("inter_node", links.inter_node)):
        if link is not None:
            known[name] = (sent_bytes / (link.bytes_per_s * _LINK_EFFICIENCY) / micro_s, _KNOWN_LOG_SD)
            told.append(f"{name.replace('_', ' ')} link: {link.name} at {_LINK_EFFICIENCY:.0%} before it was looked at")
    return known
